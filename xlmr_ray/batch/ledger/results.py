"""The published rows of an output: the files that hold them, for any engine, and a Ray dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA
from xlmr_ray.batch.ledger.snapshot import DATA, ERRORS, table_files
from xlmr_ray.batch.store.filesystem import filesystem
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    import ray.data

PATTERN = re.compile(r"([*?\[])")


def result_files(output: str | Path, *, errors: bool = False, at_least_once: bool = False) -> list[str]:
    """URLs or paths of the committed files that the published table is made of: its rows, or its error rows.

    Read them rather than the folder `OUT/data/`, where runs lie side by side, replaced and unfinished ones, too. Raises
    UserError where nothing is published.
    """
    return list(iter_files(output, errors=errors, at_least_once=at_least_once))


def iter_files(output: str | Path, *, errors: bool = False, at_least_once: bool = False) -> Iterator[str]:
    """The same, one at a time; what is raised, is at once."""
    store = open_store(str(output), at_least_once=at_least_once)
    published = current(store)
    if published is None:
        raise UserError(f"{output}: nothing is published there; a run publishes when all of its shards are committed")
    found = table_files(store, published.run_id, ERRORS if errors else DATA)
    return (store.url(file.key) for file in found)


def read_results(output: str | Path, *, errors: bool = False) -> ray.data.Dataset:
    """The rows (or error rows) of the published table in `output`, a folder or URL: exactly the committed ones, each
    once, over all runs that make the table, whatever else lies there. Raises UserError where nothing is published.
    """
    import ray.data

    output = str(output)
    files = result_files(output, errors=errors)
    if not files:
        return ray.data.from_arrow(ERROR_SCHEMA.empty_table()) if errors else ray.data.from_items([])
    fs, _ = filesystem(output)
    # Without partitioning: a folder `lang=de` on the way to the output says nothing of the rows in it.
    return ray.data.read_parquet(files, filesystem=None if "://" not in output else fs, partitioning=None)


def as_sql(files: Iterator[str]) -> Iterator[str]:
    """A query over the files for DuckDB, in pieces. What is a pattern or a partition to DuckDB is a plain name here."""
    first = next(files, None)
    if first is None:
        yield "SELECT NULL AS source, NULL AS row WHERE false"
        return
    quoted = ("'" + PATTERN.sub(r"[\1]", file).replace("'", "''") + "'" for file in chain([first], files))
    yield "SELECT * FROM read_parquet([" + next(quoted)
    for file in quoted:
        yield ", " + file
    yield "], hive_partitioning = false)"


def as_json(files: Iterator[str]) -> Iterator[str]:
    """The files as a JSON list, a line each, in pieces."""
    separator = "[\n"
    for file in files:
        yield separator + json.dumps(file, ensure_ascii=False)
        separator = ",\n"
    yield "[]" if separator == "[\n" else "\n]"
