"""Parquet: columns stay Arrow columns; no Python object is made of a good row.

Whether a page is damaged shows only when it is read: then the shard's rows of its row group are error rows, the others
are good.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.readers.footer import check_footer, hide_arrow_schema
from xlmr_ray.batch.input.readers.int96 import finer
from xlmr_ray.batch.input.readers.parquet_columns import FoundColumn, find_columns, needs_plain
from xlmr_ray.batch.input.readers.parquet_rows import (
    FINER,
    failed_rows,
    row_tables,
    schema_of,
    without_views,
    written_type,
)
from xlmr_ray.batch.input.readers.raw import CHUNK, BadFile, Source
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Piece, Shard
from xlmr_ray.text.first_line import first_line

BATCH_ROWS = 1024
MAX_SHARD_BYTES = 512 << 20  # a column of one value again and again takes no room in the file; this bounds its shard
MAX_AHEAD = 256 << 20  # bytes of a row group in the file that are held while its rows are taken
_ERRORS = (pa.ArrowException, OSError, ValueError)


class Parquet(Reader):
    """Compressed inside: a whole file in gzip could not be read by ranges."""

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        opened = open_file(source, columns)
        return Cut(opened.kept, row_pieces(opened, shard_rows, shard_bytes))

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        kept, source.opened = source.opened, None  # whoever breaks off leaves nothing behind
        opened, group = kept or (open_file(source, columns), None)
        tables: list[pa.Table] = []
        start = 0
        for index, count in enumerate(opened.row_groups):
            low, high = max(shard.start, start), min(shard.stop, start + count)
            if low < high:
                if group is None or group.index != index or group.first > low:
                    group = RowGroup(index, _batches(opened, index, columns), start)
                room = MAX_SHARD_BYTES - sum(table.nbytes for table in tables)
                tables += _rows_of_group(opened, group, low, high, columns, max_row_bytes, room)
                if high == start + count:
                    group = None
            start += count
        source.opened = opened, group
        return pa.concat_tables(tables) if tables else schema_of(columns, opened.kept).empty_table()

    def content_bytes(self, source: Source, columns: Columns) -> int:
        return sum(open_file(source, columns).row_group_bytes)

    def unread(self, source: Source, shard: Shard, columns: Columns, code: str, message: str) -> pa.Table:
        return failed_rows(shard.start, shard.stop, code, message, schema_of(columns, open_file(source, columns).kept))


def row_pieces(opened: Opened, shard_rows: int, shard_bytes: int) -> Iterator[Piece]:
    groups = np.cumsum((0, *opened.row_groups))
    for start, stop in row_ranges(opened, shard_rows, shard_bytes):
        group = groups[np.searchsorted(groups, start, "right") - 1]
        yield Piece(start, stop - start, start, stop, lead=start - int(group))


def row_ranges(opened: Opened, shard_rows: int, shard_bytes: int) -> Iterator[tuple[int, int]]:
    """Row ranges of whole row groups while they fit together; a row group that is too large is cut by itself."""
    start = stop = size = 0
    for rows, bytes_ in zip(opened.row_groups, opened.row_group_bytes, strict=True):
        most = max(1, min(shard_rows, rows * shard_bytes // max(1, bytes_)))
        if stop > start and (stop + rows - start > shard_rows or size + bytes_ > shard_bytes):
            yield start, stop
            start, size = stop, 0
        if rows > most:
            pieces = -(-rows // most)
            cuts = [stop + rows * piece // pieces for piece in range(pieces + 1)]
            yield from itertools.pairwise(cuts)
            start = stop = stop + rows
        else:
            stop, size = stop + rows, size + bytes_
    if stop > start:
        yield start, stop


@dataclass(frozen=True)
class Opened:
    """A file whose footer is sound and whose named columns can be read: where they are, the types of the kept ones."""

    source: Source
    file: pq.ParquetFile
    columns: Mapping[str, FoundColumn]
    kept: tuple[pa.DataType, ...]
    row_groups: tuple[int, ...]  # rows of each
    row_group_bytes: tuple[int, ...]  # uncompressed, of the columns that are read

    @functools.cached_property
    def nanoseconds(self) -> pq.ParquetFile:
        """The same file, with INT96 times in nanoseconds."""
        return _opened(self.source, unit="ns")

    def paths(self, names: Iterable[str]) -> list[str]:
        """Of the leaf columns that the names are in. A column with a dot in its name may share one with a struct."""
        leaves = sorted({leaf for name in names for leaf in self.columns[name].leaves})
        return list(dict.fromkeys(self.file.schema.column(leaf).path for leaf in leaves))


@dataclass
class RowGroup:
    """The batches of a row group as they are asked for: the last one, or the reason why there is none, and at which row
    of the file that begins.
    """

    index: int
    batches: Iterator[pa.RecordBatch | str]
    first: int
    batch: pa.RecordBatch | str | None = None

    def at(self, row: int) -> pa.RecordBatch | str:
        """What holds the row, which is not before those that were asked for earlier."""
        while self.batch is None or not (isinstance(self.batch, str) or row < self.first + self.batch.num_rows):
            self.first += 0 if self.batch is None else self.batch.num_rows
            self.batch = next(self.batches)
        return self.batch


def open_file(source: Source, columns: Columns) -> Opened:
    """Read the footer. Raises BadFile with the reason why the whole file cannot be read."""
    try:
        check_footer(source)
    except BadFile as error:
        if error.code == codes.EXTENSION_TYPE:
            hide_arrow_schema(source)
            error.rows = _opened(source).metadata.num_rows
        raise
    file = _opened(source)
    try:
        found = find_columns(file, columns, source.constants)
    except BadFile as error:
        error.rows = file.metadata.num_rows
        raise
    if any(needs_plain(file.schema_arrow.field(one.top).type) for one in found.values() if one.leaves):
        # Arrow gives up a whole row group where a value of a dictionary column is not UTF-8; of a string column not.
        # And of views it can do little.
        hide_arrow_schema(source)
        file = _opened(source)
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    leaves = {leaf for one in found.values() for leaf in one.leaves}
    sizes = tuple(sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups)
    stored = (sum(group.column(leaf).total_compressed_size for leaf in leaves) for group in groups)
    if max(stored, default=0) > MAX_AHEAD:
        file = _opened(source, ahead=False)
    kept = tuple(written_type(found[name].type) for name in columns.extra_columns)
    return Opened(source, file, found, kept, tuple(group.num_rows for group in groups), sizes)


def _opened(source: Source, *, unit: str = "us", ahead: bool = True) -> pq.ParquetFile:
    """`ahead`: a row group is read at once, in few requests; else `CHUNK` bytes of a column at a time."""
    try:
        return pq.ParquetFile(
            pa.PythonFile(source, mode="r"),
            pre_buffer=ahead,
            buffer_size=0 if ahead else CHUNK,
            page_checksum_verification=True,
            coerce_int96_timestamp_unit=unit,
        )
    except _ERRORS as error:
        if source.failure is not None:
            raise source.failure from None
        raise BadFile(codes.CORRUPT_FOOTER, f"the footer cannot be read: {first_line(error)[:200]}") from None


def _rows_of_group(
    opened: Opened, group: RowGroup, low: int, high: int, columns: Columns, limit: int, room: int
) -> list[pa.Table]:
    """Rows [low, high) of the file, which lie in the row group."""
    schema = schema_of(columns, opened.kept)
    tables: list[pa.Table] = []
    first = low
    while first < high:
        if room < 0:
            reason = f"the shard's rows before it hold over {MAX_SHARD_BYTES} bytes; set a lower cluster.shard_rows"
            return [*tables, failed_rows(first, high, codes.SHARD_TOO_LARGE, reason, schema)]
        batch = group.at(first)
        if isinstance(batch, str):
            return [failed_rows(low, high, codes.UNREADABLE_ROW, f"row group {group.index} {batch}", schema)]
        part = batch.slice(first - group.first, high - first)
        named = {name: without_views(opened.columns[name].column(part)) for name in columns.wanted}
        if FINER in part.schema.names:
            named[FINER] = part.column(FINER)
        tables += row_tables(named, first, columns, schema, limit)
        room -= part.nbytes
        first += part.num_rows
    return tables


def _batches(opened: Opened, index: int, columns: Columns) -> Iterator[pa.RecordBatch | str]:
    """The batches of a row group, with `FINER` where a kept column has INT96 times; where one cannot be read, the
    reason instead, and no more.
    """
    try:
        found = opened.file.iter_batches(BATCH_ROWS, row_groups=[index], columns=opened.paths(columns.wanted))
        names = [name for name in columns.extra_columns if opened.columns[name].has_int96]
        if not names:
            yield from found
        else:
            exact = opened.nanoseconds.iter_batches(BATCH_ROWS, row_groups=[index], columns=opened.paths(names))
            for batch, other in zip(found, exact, strict=True):
                pairs = [[opened.columns[name].column(one) for one in (batch, other)] for name in names]
                yield batch.append_column(FINER, pa.array(np.logical_or.reduce([finer(*pair) for pair in pairs])))
    except _ERRORS as error:
        if opened.source.failure is not None:
            raise opened.source.failure from None
        yield f"cannot be read: {first_line(error)[:200]}"
    yield "has fewer rows than the footer says"
