"""Rows of a replaced file whose texts did not change take their results from the table before (`reuse: true`).

Beside a shard's rows lie the hashes of their texts, under the same name:

    hashes/<run_id>/<shard>-<attempt>.parquet   `row`, and `hash`, 128 bits of the texts by role

The runs of a chain have the same model, tasks and options, so that equal texts have equal results, whatever the row is
called or keeps beside them. What has no hashes, cannot be read or has other columns is computed.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xlmr_ray.batch.ledger.record import HASH_SCHEMA, HASHES
from xlmr_ray.batch.ledger.snapshot import DATA, read_step, read_table
from xlmr_ray.batch.stages.rows import good_rows
from xlmr_ray.batch.store.base import Store

log = logging.getLogger(__name__)

MOST_ROWS = 1 << 24  # of a file's rows before that are looked at; 28 bytes each in memory, 86 while they are sorted


@dataclass(frozen=True)
class Before:
    """The files of an input's rows, and of their hashes, in the table before; keys in the store."""

    data: tuple[str, ...]
    hashes: tuple[str, ...]


def rows_before(store: Store, run_id: str) -> dict[str, Before]:
    """By input, of those that a planned run replaces; none of a run that comes after no other."""
    step = read_step(store, run_id)
    if step is None or step.after is None or not step.replaced:
        return {}
    files: dict[str, dict[str, list[str]]] = {key: {DATA: [], HASHES: []} for key in step.replaced}
    for part in read_table(store, step.after):
        wanted = pa.compute.is_in(part["source"], pa.array(list(files), pa.string()))
        for row in part.filter(wanted).select(["source", "kind", "file"]).to_pylist():
            if row["kind"] in (DATA, HASHES):
                files[row["source"]][row["kind"]].append(row["file"])
    found = {key: Before(tuple(of[DATA]), tuple(of[HASHES])) for key, of in files.items()}
    return {key: before for key, before in found.items() if before.hashes}


def hashes_of(rows: pa.Table, roles: Sequence[str]) -> pa.Table:
    """`HASH_SCHEMA` of the good rows."""
    good = good_rows(rows)
    columns = [rows[role].take(good).to_pylist() for role in sorted(roles)]
    digests = []
    for texts in zip(*columns, strict=True):
        one = blake2b(digest_size=16)
        for text in texts:
            data = (text or "").encode()
            one.update(b"%d:" % len(data) if text is not None else b"-")
            one.update(data)
        digests.append(one.digest())
    return pa.table([rows["_row"].take(good), pa.array(digests, pa.binary(16))], schema=HASH_SCHEMA)


@dataclass(frozen=True)
class KnownRows:
    """An input's rows before, by hash: `hashes (N)`, ascending, the row and the number of the file of each."""

    hashes: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    files: NDArray[np.int32]
    keys: tuple[str, ...]


@dataclass
class Reuse:
    """Looks up a shard's rows. `columns` are the tasks' own, as the output has them; holds what is known of one input
    at a time.
    """

    store: Store
    before: Mapping[str, Before]
    columns: pa.Schema
    source: str = ""
    known: KnownRows | None = None
    broken: set[str] = field(default_factory=set)

    def results(self, source: str, hashes: pa.Table) -> tuple[NDArray[np.int64], pa.Table]:
        """Which of the hashed rows have results, ascending, and these; where they cannot be had, none."""
        none = np.empty(0, np.int64), self.columns.empty_table()
        if source not in self.before or source in self.broken or not hashes.num_rows:
            return none
        try:
            if self.source != source or self.known is None:
                self.source, self.known = source, known_of(self.store, self.before[source])
            return self.found(self.known, hashes)
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            log.warning("%s: is computed, its rows before cannot be taken (%s)", source, type(error).__name__)
            self.broken.add(source)
            return none

    def found(self, known: KnownRows, hashes: pa.Table) -> tuple[NDArray[np.int64], pa.Table]:
        wanted = as_keys(hashes["hash"])
        place = np.minimum(np.searchsorted(known.hashes, wanted), max(0, len(known.hashes) - 1))
        here = np.flatnonzero(known.hashes[place] == wanted) if len(known.hashes) else np.empty(0, np.int64)
        rows, files = known.rows[place[here]], known.files[place[here]]
        parts, order = [], []
        for file in np.unique(files).tolist():
            of_file = np.flatnonzero(files == file)
            parts.append(self.rows_of(known.keys[file], rows[of_file]))
            order.append(of_file)
        if not parts:
            return here, self.columns.empty_table()
        back = np.argsort(np.concatenate(order))
        return here, pa.concat_tables(parts).take(pa.array(back)).cast(self.columns)

    def rows_of(self, hashes: str, rows: NDArray[np.int64]) -> pa.Table:
        """The results of rows whose hashes are in this file: in the rows' file of that name, or in what it was merged
        into. Raises ValueError where some are not there.
        """
        beside = f"{DATA}/{hashes.partition('/')[2]}"
        files = self.before[self.source].data
        span = [("source", "=", self.source), ("row", ">=", int(rows.min())), ("row", "<=", int(rows.max()))]
        for key in [beside] if beside in files else [key for key in files if not key.startswith(f"{DATA}/")]:
            with self.store.open(key) as file:
                table = pq.read_table(file, columns=["row", *self.columns.names], filters=span, partitioning=None)
            there = table["row"].to_numpy()
            at = np.searchsorted(there, rows)
            if len(there) and (at < len(there)).all() and (there[at] == rows).all():
                return table.take(pa.array(at)).select(self.columns.names)
        raise ValueError("rows are missing")


def known_of(store: Store, before: Before) -> KnownRows:
    keys, rows, files = [np.empty(0, "S16")], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    count = 0
    for number, key in enumerate(before.hashes):
        with store.open(key) as file:
            table = pq.read_table(file, schema=HASH_SCHEMA, partitioning=None)
        count += table.num_rows
        if count > MOST_ROWS:
            log.warning("%s: more rows than %d; what follows is not looked up", key, MOST_ROWS)
            break
        keys.append(as_keys(table["hash"]))
        rows.append(table["row"].to_numpy())
        files.append(np.full(table.num_rows, number, np.int32))
    hashes = np.concatenate(keys)
    order = np.argsort(hashes, kind="stable")
    return KnownRows(hashes[order], np.concatenate(rows)[order], np.concatenate(files)[order], before.hashes)


def as_keys(hashes: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Hashes as numpy compares and sorts them; all are as long, so that the zeros at an end, which it drops, count."""
    whole = hashes.combine_chunks()
    start = 16 * whole.offset
    return np.frombuffer(whole.buffers()[1], "S16", len(whole), start) if len(whole) else np.empty(0, "S16")
