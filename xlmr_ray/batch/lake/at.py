"""The files of a table, where a path that a job names is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xlmr_ray.batch.input.constants import constants_to_text
from xlmr_ray.batch.lake import TABLES
from xlmr_ray.batch.lake.table import TableFormat
from xlmr_ray.batch.store.filesystem import local_path, scheme_of
from xlmr_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class FileAtVersion:
    """A file of a table: its URL or absolute path, the table with its version, and its constant columns as
    `InputFile.constants` has them.
    """

    url: str
    table: str
    constants: str


def format_at(fs: Any, where: str) -> TableFormat | None:
    """The format of the table at a path, None where there is no table."""
    return next((format for format in TABLES if format.is_table(fs, where)), None)


def files_at_version(
    format: TableFormat,
    url: str,
    version: int | None,
    wanted: Sequence[str],
    options: Mapping[str, object] | None = None,
) -> Iterator[FileAtVersion]:
    """The files of a table at a version, None for the newest. A `wanted` column that a file does not have is one of the
    table's partitions, or null: the table has got it since.

    Raises UserError where the library is missing, or rows and columns of the table are not those of its files.
    """
    whole = local_path(url) if scheme_of(url) == "file" else url.rstrip("/")
    try:
        table = format.read(url, version, wanted, options)
    except ImportError as error:
        raise UserError(
            f"{url}: is a table of {format.name}, and the package that reads it is not installed ({error.name}): "
            f"pip install 'xlmr-ray[{format.extra}]'"
        ) from None
    for name in wanted:
        if not any(one in table.schema.names for one in _tops(name)):
            there = ", ".join(one[:64] for one in table.schema.names[:20])
            raise UserError(f"{url}: column {name!r} is not in the {format.name} table; it has: {there}")
    columns = {name: table.schema.field(name).type for name in wanted if name in table.schema.names}
    for file in table.files:
        try:
            constants = constants_to_text({name: (file.partition.get(name), type) for name, type in columns.items()})
        except ValueError as error:
            name = str(error)
            raise UserError(
                f"{url}: the {format.name} table is partitioned by {name!r}, a column of type {columns[name]}, whose "
                "values are not read; leave the column out"
            ) from None
        yield FileAtVersion(file.url, f"{whole}@{table.version}", constants)


def _tops(name: str) -> Iterator[str]:
    """The name, and what is before each of its dots."""
    yield name
    yield from (name[:index] for index, char in enumerate(name) if char == ".")
