"""Parquet: columns stay Arrow columns; no Python object is made of a good row.

Whether a page is damaged shows only when it is read: then the shard's rows of its row group are error rows, the others
are good.
"""

from __future__ import annotations

import functools
import itertools
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, SYSTEM, Columns, Problem, repair, text_of
from xlmr_ray.batch.input.readers.footer import check_footer, hide_arrow_schema
from xlmr_ray.batch.input.readers.int96 import finer
from xlmr_ray.batch.input.readers.parquet_columns import Found, find_columns, is_list_of_text, is_text, needs_plain
from xlmr_ray.batch.input.readers.raw import CHUNK, Damaged, Source
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Piece, Shard

BATCH_ROWS = 1024
MAX_SHARD_BYTES = 512 << 20  # a column of one value again and again takes no room in the file; this bounds its shard
MAX_AHEAD = 256 << 20  # bytes of a row group in the file that are held while its rows are taken
HALVE_OVER = 1 << 30  # a string column's offsets are 32 bits: batches over this are halved
FINER = "\0finer"  # a column that the file cannot have
_ERRORS = (pa.ArrowException, OSError, ValueError)


class Parquet(Reader):
    """Compressed inside: a whole file in gzip could not be read by ranges."""

    name: ClassVar[str] = "parquet"
    endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        opened = open_file(source, columns)
        return Cut(opened.kept, pieces_of(opened, shard_rows, shard_bytes))

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
                tables += _rows(opened, group, low, high, columns, max_row_bytes, room)
                if high == start + count:
                    group = None
            start += count
        source.opened = opened, group
        return pa.concat_tables(tables) if tables else _schema(columns, opened.kept).empty_table()

    def content_bytes(self, source: Source, columns: Columns) -> int:
        return sum(open_file(source, columns).row_group_bytes)

    def unread(self, source: Source, shard: Shard, columns: Columns, code: str, message: str) -> pa.Table:
        return _failed(shard.start, shard.stop, code, message, _schema(columns, open_file(source, columns).kept))


def pieces_of(opened: Opened, shard_rows: int, shard_bytes: int) -> Iterator[Piece]:
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
    columns: Mapping[str, Found]
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
    """Read the footer. Raises Damaged with the reason why the whole file cannot be read."""
    try:
        check_footer(source)
    except Damaged as error:
        if error.code == codes.EXTENSION_TYPE:
            hide_arrow_schema(source)
            error.rows = _opened(source).metadata.num_rows
        raise
    file = _opened(source)
    try:
        found = find_columns(file, columns, source.constants)
    except Damaged as error:
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
    kept = tuple(_kept_type(found[name].type) for name in columns.extra_columns)
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
        raise Damaged(codes.CORRUPT_FOOTER, f"the footer cannot be read: {_first_line(error)}") from None


def _rows(
    opened: Opened, group: RowGroup, low: int, high: int, columns: Columns, limit: int, room: int
) -> list[pa.Table]:
    """Rows [low, high) of the file, which lie in the row group."""
    schema = _schema(columns, opened.kept)
    tables: list[pa.Table] = []
    first = low
    while first < high:
        if room < 0:
            reason = f"the shard's rows before it hold over {MAX_SHARD_BYTES} bytes; set a lower cluster.shard_rows"
            return [*tables, _failed(first, high, codes.SHARD_TOO_LARGE, reason, schema)]
        batch = group.at(first)
        if isinstance(batch, str):
            return [_failed(low, high, codes.UNREADABLE_ROW, f"row group {group.index} {batch}", schema)]
        part = batch.slice(first - group.first, high - first)
        named = {name: _text(opened.columns[name].column(part)) for name in columns.wanted}
        if FINER in part.schema.names:
            named[FINER] = part.column(FINER)
        tables += _tables(named, first, columns, schema, limit)
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
        yield f"cannot be read: {_first_line(error)}"
    yield "has fewer rows than the footer says"


def _tables(named: dict[str, pa.Array], first: int, columns: Columns, schema: pa.Schema, limit: int) -> list[pa.Table]:
    """A batch as tables, halved while its strings would overflow the 32-bit offsets of a string column."""
    sizes = _row_bytes(named)
    if len(sizes) > 1 and (pc.sum(sizes).as_py() or 0) > HALVE_OVER:
        middle = len(sizes) // 2
        left = {name: column.slice(0, middle) for name, column in named.items()}
        right = {name: column.slice(middle) for name, column in named.items()}
        return [*_tables(left, first, columns, schema, limit), *_tables(right, first + middle, columns, schema, limit)]
    problems: dict[int, Problem] = {}  # by row of the batch; the first problem of a row counts
    if (pc.max(sizes).as_py() or 0) > limit:
        for row in pc.indices_nonzero(pc.greater(sizes, limit)).to_pylist():
            problems[row] = Problem(codes.ROW_TOO_LARGE, f"{sizes[row]} bytes, the limit is {limit}")
        named = {name: _without(column, list(problems)) for name, column in named.items()}
    return [_table(named, len(sizes), first, problems, columns, schema)]


def _table(
    named: dict[str, pa.Array],
    count: int,
    first: int,
    problems: dict[int, Problem],
    columns: Columns,
    schema: pa.Schema,
) -> pa.Table:
    out: dict[str, pa.Array] = {}
    empty = pa.repeat(pa.scalar(""), count)
    out["id"] = empty
    if columns.id is not None:
        id = named[columns.id]
        id = _uuids(id) if pa.types.is_fixed_size_binary(id.type) else _sound(_plain(id), columns.id, problems)
        out["id"] = id.cast(pa.string()).fill_null("")
    for name, of in zip(columns.extra, columns.extra_columns, strict=True):
        type = schema.field(name).type
        column = _plain(named[of]) if type == pa.string() else named[of]
        column = _sound(column, of, problems)
        out[name] = column if column.type == type else column.cast(type)
    if FINER in named:
        for row in pc.indices_nonzero(named[FINER]).to_pylist():
            problems.setdefault(row, Problem(codes.UNFIT_VALUE, "a kept INT96 time is finer than microseconds"))
    changed: set[int] = set()
    for role, name in columns.text.items():
        out[role] = _sound(_plain(named[name]), name, problems)
        if role in LISTS:
            out[role] = _as_json(out[role], role, name, problems, changed)
        if out[role].null_count:
            for row in pc.indices_nonzero(out[role].is_null()).to_pylist():
                problems.setdefault(row, Problem(codes.NULL_FIELD, f"field {name!r} is null"))
    out["_row"] = pa.array(np.arange(first, first + count, dtype=np.int64))
    out["_code"] = out["_message"] = empty
    out["_changed"] = pa.array(np.isin(np.arange(count), list(changed)))
    if problems:
        for role in columns.text:
            out[role] = _without(out[role], list(problems))
        found = [problems.get(row) for row in range(count)]
        out["_code"] = pa.array([problem.code if problem else "" for problem in found], pa.string())
        words = [f"row {first + row}: {problem.message}" if problem else "" for row, problem in enumerate(found)]
        out["_message"] = pa.array(words, pa.string())
    return pa.table([out[name] for name in schema.names], schema=schema)


def _failed(low: int, high: int, code: str, reason: str, schema: pa.Schema) -> pa.Table:
    """Error rows for the rows [low, high) of the file."""
    count = high - low
    known = {
        "_row": pa.array(np.arange(low, high, dtype=np.int64)),
        "_code": pa.repeat(pa.scalar(code), count),
        "_message": pa.array([f"row {row}: {reason}" for row in range(low, high)], pa.string()),
        "_changed": pa.repeat(pa.scalar(False), count),
        "id": pa.repeat(pa.scalar(""), count),
    }
    return pa.table(
        [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in schema], schema=schema
    )


def _schema(columns: Columns, kept: tuple[pa.DataType, ...]) -> pa.Schema:
    own = [pa.int64(), pa.string(), pa.string(), pa.bool_(), pa.string()]
    return pa.schema(
        [
            *zip((*SYSTEM, "id"), own, strict=True),
            *zip(columns.extra, kept, strict=True),
            *((role, pa.string()) for role in columns.text),
        ]
    )


def _sound(column: pa.Array, name: str, problems: dict[int, Problem]) -> pa.Array:
    """The column with null for values that are not valid UTF-8 (Parquet readers do not look), each one a problem."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        bad = [row for row in range(len(column)) if not _is_sound(column.take(pa.array([row])))]
    for row in bad:
        problems.setdefault(row, Problem(codes.INVALID_UTF8, f"field {name!r} is not valid UTF-8"))
    return _without(column, bad)


def _as_json(column: pa.Array, role: str, name: str, problems: dict[int, Problem], changed: set[int]) -> pa.Array:
    """Lists as JSON, null for rows with a problem; `changed` gets the rows in which lone surrogates, which
    JSON can spell, are now U+FFFD.
    """
    texts: list[str | None] = []
    for row, value in enumerate(column.to_pylist()):
        text = None if row in problems else text_of(role, value, name)
        if isinstance(text, Problem):
            problems[row], text = text, None
        if text is not None and (repaired := repair(text)) != text:
            changed.add(row)
            text = repaired
        texts.append(text)
    return pa.array(texts, pa.string())


def _is_sound(value: pa.Array) -> bool:
    try:
        value.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without(column: pa.Array, rows: list[int]) -> pa.Array:
    """The column with null in these rows."""
    if not rows:
        return column
    mask = np.zeros(len(column), dtype=bool)
    mask[rows] = True
    return column.take(pa.array(np.arange(len(column)), mask=mask))


def _row_bytes(named: dict[str, pa.Array]) -> pa.Array:
    """Bytes of each row's strings."""
    total: pa.Array = None
    for column in named.values():
        if is_list_of_text(column.type):
            inner = pc.binary_length(pc.list_flatten(column)).fill_null(0).to_numpy(zero_copy_only=False)
            parents = pc.list_parent_indices(column).to_numpy()
            lengths = pa.array(np.bincount(parents, inner, minlength=len(column)).astype(np.int64))
        elif not is_text(column.type) or pa.types.is_null(column.type):
            continue
        else:
            lengths = pc.binary_length(column).cast(pa.int64()).fill_null(0)
        total = lengths if total is None else pc.add(total, lengths)
    return pa.nulls(len(next(iter(named.values()))), pa.int64()) if total is None else total


def _plain(column: pa.Array) -> pa.Array:
    """Any kind of string, or bytes that should be UTF-8, as a string column; other types as they are. Unchecked."""
    if column.type in (pa.large_string(), pa.large_binary()):
        column = column.cast(pa.binary())
    return column.view(pa.string()) if pa.types.is_binary(column.type) else column


def _text(column: pa.Array) -> pa.Array:
    """A column of views in a type that Arrow's functions take; any other as it is."""
    if column.type in (pa.string_view(), pa.binary_view()):
        is_string = column.type == pa.string_view()
        column = column.cast(pa.large_binary())
        column = column.view(pa.large_string()) if is_string else column
    return column


def _uuids(column: pa.Array) -> pa.Array:
    return pa.array([value and str(uuid.UUID(bytes=value)) for value in column.to_pylist()], pa.string())


def _kept_type(type: pa.DataType) -> pa.DataType:
    """The type in which a kept column is written: its own, but every kind of string is `string`."""
    return pa.string() if type == pa.large_string() else type


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
