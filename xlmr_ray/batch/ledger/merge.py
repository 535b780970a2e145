"""Merges the small files of a finished run's table into large ones, each sorted as the input is.

Nothing is taken away: `merged.parquet`, which names the merged files, is created when all of them are there, and from
then on readers see these. `sweep` removes the others once no reader can still be at them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.lake.sink import table_of
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.manifest import manifest_key
from xlmr_ray.batch.ledger.merged import Merged, all_merged, merge_files, merged_table_key, record_of
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import File
from xlmr_ray.batch.ledger.snapshot import (
    DATA,
    MERGED,
    SCHEMA,
    read_head,
    read_step,
    read_table,
    table_files,
    table_key,
)
from xlmr_ray.batch.store.base import Entry, Exists, Store
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.plural import plural

SMALL = 64 << 20  # bytes of a file; larger ones stay as they are
ENOUGH = 320 << 20  # bytes that are merged into one, which is no larger


class Map(Protocol):
    """`map`, or one that has several groups under way, on other machines maybe."""

    def __call__(self, merge: Callable[[list[str]], Merged], groups: Iterable[list[str]], /) -> Iterator[Merged]: ...


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was done: files of rows before and after. The same where there was nothing to do."""

    run_id: str
    before: int
    after: int

    def __str__(self) -> str:
        what = "nothing to merge" if self.before == self.after else f"{self.after:,} now, in merged/"
        return f"run {self.run_id}: {plural(self.before, 'file')} of rows; {what}"


def compact(store: Store) -> Compacted:
    """Merges what is small of the published table. Raises UserError where nothing is published, and what `merge_table`
    raises.
    """
    published = current(store)
    if published is None:
        raise UserError(f"{store.url('')}: nothing is published there, so there is nothing to compact")
    return merge_table(store, published.run_id)


def merge_table(store: Store, run_id: str, mapped: Map = map) -> Compacted:
    """Merges what is small of a finished run's table, published or not; each group by a call of `mapped`. Raises as
    `check_mergeable` does, and JobFailed where files do not go together.
    """
    check_mergeable(store)
    before = list(table_files(store, run_id, DATA))
    if store.head(merged_table_key(run_id)) is not None:
        return Compacted(run_id, len(before), len(before))
    keys = ([file.key for file in group] for group in groups(before))
    if merged := list(mapped(partial(merge_files, store, run_id), keys)):
        with contextlib.suppress(Exists):  # another was faster, with the same groups
            store.create(merged_table_key(run_id), table_with(store, run_id, merged))
    return Compacted(run_id, len(before), len(list(table_files(store, run_id, DATA))))


def check_mergeable(store: Store) -> None:
    """Raises UserError where a table names the files as they are."""
    if (table := table_of(store)) is not None:
        raise UserError(
            f"{store.url(DATA)}: is a table ({table}), too, which names its files as they are: they are not merged; "
            "leave output.compact out, or give another output.path"
        )


def groups(files: list[File]) -> Iterator[list[File]]:
    """Neighbours that are merged, two at least."""
    group: list[File] = []
    size = 0
    for file in files:
        if file.bytes >= SMALL or size + file.bytes > ENOUGH:
            if len(group) > 1:
                yield group
            group, size = [], 0
        if file.bytes < SMALL:
            group.append(file)
            size += file.bytes
    if len(group) > 1:
        yield group


def table_with(store: Store, run_id: str, merged: list[Merged]) -> bytes:
    """The run's table with merged files in the place of what they hold."""
    place = {key: one.file for one in merged for key in one.of}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for part in read_table(store, run_id, merged=False):
            rows: list[dict[str, Any]] = []
            for row in part.to_pylist():
                file = place.get(row["file"])
                if file is not None:
                    row = {**row, "file": file.key, "bytes": file.bytes}
                last = rows[-1] if rows else None
                if file is not None and last and (last["source"], last["file"]) == (row["source"], row["file"]):
                    last["rows"] += row["rows"]
                else:
                    rows.append(row)
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return sink.getvalue()


def merged_files(store: Store, run_id: str, problems: list[str]) -> list[File]:
    """The merged files in a run's table, with the checksums of their records. Adds to `problems`, a line each: their
    table must be what the run's own and their records make it, and each has as many rows as the table has of it.
    """
    found: list[File] = []
    try:
        merged_here = store.head(merged_table_key(run_id)) is not None
        if merged_here:
            merged = [one for one in all_merged(store, run_id) if not one.without]
            wanted = pq.read_table(pa.BufferReader(table_with(store, run_id, merged))).cast(SCHEMA)
            if not pa.concat_tables([SCHEMA.empty_table(), *read_table(store, run_id)]).equals(wanted):
                problems.append(
                    f"{store.url(merged_table_key(run_id))}: is damaged: does not agree with what was merged"
                )
        if not merged_here and store.head(table_key(run_id)) is None:
            return []
        for file in table_files(store, run_id, DATA):
            if not file.key.startswith(MERGED):
                continue
            one = record_of(store, file.key)
            if one is None:
                problems.append(f"{store.url(file.key)}: no record names it")
                continue
            found.append(one.file)
            if one.file.rows != file.rows:
                problems.append(
                    f"{store.url(file.key)}: the table has {file.rows} rows of it, its record {one.file.rows}"
                )
    except JobFailed as error:
        if str(error) not in problems:
            problems.append(str(error))
    return found


def is_merged_away(store: Store, key: str) -> bool:
    """Whether the rows of a file are in a merged one that readers see in its place."""
    return any(key in merged.of for run_id in store.folders("_runs/") for merged in in_place(store, run_id))


def in_place(store: Store, run_id: str) -> Iterator[Merged]:
    """The records of a run's merged files, once its table has them."""
    left, table = (store.head(key) is not None for key in (table_key(run_id), merged_table_key(run_id)))
    for merged in all_merged(store, run_id) if left or table else ():
        if left if merged.without else table:
            yield merged


def merged_away(store: Store, before: float) -> Iterator[Entry]:
    """For `sweep`: files of rows that no reader can be at any more, since a table that was written `before` has merged
    ones in their place and no other table names them; and merged files as old that no record names.
    """
    away: set[str] = set()
    for run_id in store.folders("_runs/"):
        for merged in in_place(store, run_id):
            entry = store.head(table_key(run_id) if merged.without else merged_table_key(run_id))
            if entry is not None and entry.modified <= before:
                away.update(merged.of)
    if away:
        for run_id in standing(store):
            entry = store.head(merged_table_key(run_id))
            # Readers may be at the files of a table merged only now, whichever table they were merged in first.
            settled = entry is not None and entry.modified <= before
            for part in read_table(store, run_id, merged=settled):
                away.difference_update(part["file"].to_pylist())
    for entry in in_order(store.head, sorted(away)):
        if entry is not None:
            yield entry
    for run_id in store.folders(MERGED):
        named = {merged.file.key for merged in all_merged(store, run_id)}
        for entry in store.list(f"{MERGED}{run_id}/"):
            if entry.key not in named and entry.modified <= before:
                yield entry


def standing(store: Store) -> Iterator[str]:
    """The finished runs whose tables somebody may read: all but those on which a later one of their job was built."""
    published = current(store)
    built_upon: set[str] = set()
    for run_id in {published.run_id, *published.heads.values()} if published is not None else ():
        head = read_head(store, run_id)
        built_upon.update(head.runs[:-1] if head is not None else ())
    for run_id in store.folders("_runs/"):
        if run_id in built_upon or store.head(manifest_key(run_id)) is None:
            continue
        # A run whose table is not there yet will have merged files in it.
        if read_step(store, run_id) is None or store.head(table_key(run_id)) is not None:
            yield run_id
