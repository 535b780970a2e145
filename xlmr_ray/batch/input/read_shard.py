"""Reads one shard, of whatever format, into one table: every row once, in order, good or with an error code."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.kept_types import as_planned
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.raw import MAX_ROW_BYTES, BadFile, Source
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.errors import JobFailed


def read_shard(
    shard: Shard,
    columns: Columns,
    *,
    max_row_bytes: int = MAX_ROW_BYTES,
    readers: Mapping[str, Reader] = READERS,
    options: Mapping[str, object] | None = None,
    kept: pa.Schema | None = None,
    source: Source | None = None,
) -> pa.Table:
    """Read a shard as it was planned, by its format's reader. `options` go to the file system, as in `find_inputs`;
    `kept` are the types of the kept columns over all files, None where each file has its own; `source` is what the
    shard's neighbour before was read from: what it read is not read again. After an error it is of no use any more.

    Returns a table with `_row: int64` (position in the file, from 0), `_code: string` ("" for a good row, else a row
    code of `codes`), `_message: string` (names field and position, holds no document), `_changed: bool` (a string of
    the row held lone surrogates, now U+FFFD), `id: string` ("" where there is none), the kept columns, and a string
    column for each text role, null in error rows.
    Raises InputChanged where the object is not the planned one, before or after; errors of the store propagate.
    """
    if not 0 < max_row_bytes <= MAX_ROW_BYTES:
        raise ValueError(f"max_row_bytes is {max_row_bytes}; expected 1 to {MAX_ROW_BYTES}")
    if source is None:
        source = Source(shard.input, options)
        try:
            return read_shard(shard, columns, max_row_bytes=max_row_bytes, readers=readers, kept=kept, source=source)
        finally:
            source.leave()
    if source.unchecked:
        source.check()
    try:
        table = readers[shard.input.format].read(source, shard, columns, max_row_bytes)
    except BadFile as error:
        source.check()
        raise JobFailed(f"{shard.input.key}: readable when planned, now not: {error.message}") from None
    except OSError:
        source.check()  # a better reason, if the object has changed meanwhile
        raise
    if source.unchecked:  # else all of it was there when the source was checked last
        source.check()
    if table.num_rows != shard.rows:
        raise InputChanged(f"{shard.input.key}: {table.num_rows} rows in shard {shard.id}, {shard.rows} when planned")
    return as_planned(table, kept, columns.extra)


def unread_shard(
    shard: Shard,
    columns: Columns,
    failure: tuple[str, str],
    *,
    readers: Mapping[str, Reader] = READERS,
    options: Mapping[str, object] | None = None,
    kept: pa.Schema | None = None,
) -> pa.Table:
    """The table of a shard whose reading kills its process: all rows fail with this code and message.

    Raises JobFailed for a line format, where only reading tells which lines are blank and no rows.
    """
    code, message = failure
    source = Source(shard.input, options)
    source.check()
    table = readers[shard.input.format].unread(source, shard, columns, code, message)
    return as_planned(table, kept, columns.extra)
