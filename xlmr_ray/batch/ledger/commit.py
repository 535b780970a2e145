"""A shard's rows to Parquet files, and the record that commits them."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, HASHES, File, Record, Stats, read_record, record_key
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed

ROW_GROUP = 65536


MAX_COMMIT = 3600.0  # seconds from a shard's first file to its record; well under GRACE


SHARD = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")


def commit_shard(
    store: Store,
    run_id: str,
    shard_id: str,
    *,
    attempt: str,
    rows: pa.Table,
    errors: pa.Table,
    rows_in: int,
    source_key: str,
    source_etag: str,
    stats: Stats | None = None,
    rows_lost: int = 0,
    lost_estimated: bool = False,
    hashes: pa.Table | None = None,
) -> tuple[Record, bool]:
    """Write and commit a shard's rows and error rows. Returns its record, and whether this attempt is the one in it.

    `errors` has `ERROR_SCHEMA` and no nulls, `hashes` has `HASH_SCHEMA`, a row for each of `rows`; for `rows_lost` see
    `Record`. `attempt` is a `new_attempt()`, used for this call only. Raises JobFailed where rows are missing or too
    many, and where the store fails; whatever was written then is an orphan.
    """
    if not SHARD.fullmatch(shard_id):
        raise ValueError(f"shard id {shard_id!r}: want letters, digits, '_', '.' and '-'")
    if rows.num_rows + errors.num_rows != rows_in:
        raise JobFailed(
            f"shard {shard_id} of {source_key}: {rows_in} rows in, but {rows.num_rows} out and {errors.num_rows} errors"
        )
    if errors.schema.names != ERROR_SCHEMA.names or any(column.null_count for column in errors.columns):
        raise ValueError(f"errors of shard {shard_id}: want the columns {ERROR_SCHEMA.names} without nulls")
    # a late attempt should leave nothing beside a finished run's files, not even for a moment
    if (winner := read_record(store, run_id, shard_id)) is not None:
        return winner, winner.attempt == attempt

    begun = time.monotonic()
    name = f"{run_id}/{shard_id}-{attempt}.parquet"
    # A file without columns would have another schema than all others, and no reader would take them together.
    files = [_write(store, f"data/{name}", rows)] if rows.num_columns else []
    if errors.num_rows:
        files.append(_write(store, f"errors/{name}", errors.cast(ERROR_SCHEMA)))
    if hashes is not None and hashes.num_rows:
        files.append(_write(store, f"{HASHES}/{name}", hashes))
    record = Record(
        run_id=run_id,
        shard=shard_id,
        attempt=attempt,
        files=tuple(file for file, _ in files),
        rows_in=rows_in,
        rows_ok=rows.num_rows,
        rows_error=errors.num_rows,
        source_key=source_key,
        source_etag=source_etag,
        committed_at=round(time.time(), 3),
        stats=stats or Stats(),
        errors=tuple(sorted(Counter(errors.column("code").to_pylist()).items())),
        rows_lost=rows_lost,
        lost_estimated=lost_estimated,
    )
    intact = all(_is_there(store, file, etag) for file, etag in files)
    if intact and time.monotonic() - begun > MAX_COMMIT:
        raise JobFailed(
            f"shard {shard_id}: took over {MAX_COMMIT:.0f} s to write, so a sweep may have removed it; try again"
        )
    if intact:
        try:
            store.create(record_key(run_id, shard_id), record.to_bytes())
            return record, True
        except Exists:
            pass
    winner = read_record(store, run_id, shard_id)
    if winner is None:
        raise JobFailed(f"{store.url(files[0][0].key)}: is not what was written there a moment ago; try again")
    if winner.attempt == attempt:
        return winner, True
    for file, _ in files:
        store.delete(file.key)
    return winner, False


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file, zstd; equal tables give equal bytes, however they are chunked."""
    sink = io.BytesIO()
    # text repeats and gains from a dictionary; scores and vectors do not, and the attempt costs time
    texts = [
        column.name
        for column in table.schema
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    pq.write_table(table.combine_chunks(), sink, compression="zstd", row_group_size=ROW_GROUP, use_dictionary=texts)
    return sink.getvalue()


def _write(store: Store, key: str, table: pa.Table) -> tuple[File, str]:
    # whole in memory, then one PUT: a Parquet file written as a stream can be left cut
    data = to_parquet(table)
    etag = store.put(key, data)
    return File(key, len(data), hashlib.sha256(data).hexdigest(), table.num_rows), etag


def _is_there(store: Store, file: File, etag: str) -> bool:
    """Whether the object has the size and etag that its PUT, which the store checked by digest, was answered with."""
    entry = store.head(file.key)
    return entry is not None and entry.size == file.bytes and entry.etag == etag
