"""Copies of many records in one object, so that whoever needs all of a run's records need not read a million objects.

    _runs/<run_id>/gathered/<first shard>-<hash>.parquet   a record a row, sorted; written by the driver, now and then

A copy makes no shard done: only the record does, and a copy is read in the place of a record that is listed. What a
driver had not written when it was killed, and what is in a damaged object, is read record by record. The hash is that
of the object's bytes.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.counted import Counted, counted
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.record import Record, committed_shards, read_record, record_key
from xlmr_ray.batch.store.base import Store, keys_in

# Records that a driver holds at most, and in an object; and their bytes, as a summary by many groups has 100 kB.
HELD, HELD_BYTES = 16_384, 32 << 20
OF_AN_OBJECT, OBJECT_BYTES = 1_000, 4 << 20
LEAST = 16  # records that are worth an object
AHEAD = 4  # objects read at a time
RECORD = "record"  # the column of what a record's object holds, beside those of `Counted`

Row = tuple[Any, ...]


class Gathered:
    """Records as a driver hears of them, on their way into copies."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.run_id = store, run_id
        self._held: list[tuple[str, Counted, bytes]] = []
        self._bytes = 0

    def add(self, record: Record, data: bytes) -> None:
        """A committed shard's record, with or without its summary, and what its object holds."""
        self._held.append((_sort_key(record.shard), counted(record), data))
        self._bytes += len(data)
        if len(self._held) >= HELD or self._bytes >= HELD_BYTES:
            self.write()

    def write(self) -> None:
        """Writes what is held, if it is worth it."""
        held, self._held, self._bytes = sorted(self._held, key=lambda one: one[0]), [], 0
        # Where two may create one record, what was created is not what is there.
        if len(held) < LEAST or self.store.at_least_once:
            return
        rows: list[dict[str, Any]] = []
        size = 0
        for _, one, data in held:
            if len(rows) == OF_AN_OBJECT or (rows and size + len(data) > OBJECT_BYTES):
                self._write(rows)
                rows, size = [], 0
            rows.append({**one._asdict(), RECORD: data})
            size += len(data)
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        self.store.put(f"{gathered_prefix(self.run_id)}{rows[0]['shard']}-{_hash(data)}.parquet", data)


def gathered_prefix(run_id: str) -> str:
    return f"_runs/{run_id}/gathered/"


def committed(store: Store, run_id: str) -> Iterator[Record]:
    """The run's records, sorted by shard, a few in memory at a time. Raises `Damaged`."""

    def record(found: tuple[str, Row | None]) -> Record | None:
        shard, copy = found
        if copy is None:
            return read_record(store, run_id, shard)
        return Record.from_bytes(copy[1], store.url(record_key(run_id, shard)))

    found = in_order(record, _with_copies(store, run_id, ("shard", RECORD)))
    return (one for one in found if one is not None)


def all_counted(store: Store, run_id: str) -> Iterator[Counted]:
    """What a manifest has of each of these records. Raises `Damaged`."""

    def count(found: tuple[str, Row | None]) -> Counted | None:
        shard, copy = found
        if copy is not None:
            return Counted._make(copy)
        record = read_record(store, run_id, shard)
        return None if record is None else counted(record)

    found = in_order(count, _with_copies(store, run_id, Counted._fields))
    return (one for one in found if one is not None)


def _with_copies(store: Store, run_id: str, columns: Sequence[str]) -> Iterator[tuple[str, Row | None]]:
    """The shards that have a record, in their order, with what these columns, of which `shard` is the first, have of
    the copy; None where there is none.
    """
    copies = _copies(store, run_id, columns)
    copy = next(copies, None)
    for shard in committed_shards(store, run_id):
        place = _sort_key(shard)
        while copy is not None and _sort_key(copy[0]) < place:
            copy = next(copies, None)
        yield shard, copy if copy is not None and copy[0] == shard else None


def _copies(store: Store, run_id: str, columns: Sequence[str]) -> Iterator[Row]:
    """All copies, sorted by shard; of some records there are several."""

    def rows(key: str) -> tuple[str, Iterator[Row]]:
        first, _, name = key[len(gathered_prefix(run_id)) :].rpartition("-")
        data, _ = store.get(key)
        if f"{_hash(data)}.parquet" != name:
            return first, iter(())
        file = pq.ParquetFile(pa.BufferReader(data))
        if not set(columns) <= set(file.schema_arrow.names):  # of another version
            return first, iter(())
        table = file.read(columns=list(columns), use_threads=False).select(list(columns))
        return first, zip(*(column.to_pylist() for column in table.columns), strict=True)

    # Objects overlap where launches do, or what a driver held at a time: of those that do, a row each is compared.
    begun: list[tuple[str, int, Row, Iterator[Row]]] = []
    for number, (first, found) in enumerate(
        in_order(rows, keys_in(store, gathered_prefix(run_id)), requests=AHEAD, most=1)
    ):
        while begun and begun[0][0] < _sort_key(first):
            yield _advance(begun)
        if (row := next(found, None)) is not None:
            heapq.heappush(begun, (_sort_key(row[0]), number, row, found))
    while begun:
        yield _advance(begun)


def _advance(begun: list[tuple[str, int, Row, Iterator[Row]]]) -> Row:
    _, number, row, found = begun[0]
    if (after := next(found, None)) is None:
        heapq.heappop(begun)
    else:
        heapq.heapreplace(begun, (_sort_key(after[0]), number, after, found))
    return row


def _sort_key(shard: str) -> str:
    """Sorts as the key of its record does."""
    return f"{shard}.json"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
