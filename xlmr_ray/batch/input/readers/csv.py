"""CSV and TSV with a header, quoted as in RFC 4180. `row` counts records from 0, the header not counted.

A blank line outside quotes is no row, but it counts. Every value is a string; an empty field is an empty string.
As in Python's csv module, a quote opens a quoted field only at the field's start and is an ordinary character
elsewhere. That module itself is not used: it tells no byte offsets, takes a lone CR for a line end, and caps a field
by a process-wide setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, Columns, Problem, Rows, Value, text_of
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import (
    BOM,
    MAX_ROW_BYTES,
    Damaged,
    Source,
    check_names,
    chunks,
    lines,
    without_return,
)
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard

DELIMITER = r"^[\x00-\x09\x0b\x0c\x0e-\x21\x23-\x7f]$"  # ASCII, but no quote, CR or newline


class Csv(Reader):
    """`delimiter`: one ASCII character between fields; not a quote or a line end."""

    name: ClassVar[str] = "csv"
    endings: ClassVar[tuple[str, ...]] = (".csv",)
    compressed: ClassVar[bool] = True
    related: ClassVar[tuple[str, ...]] = ("tsv",)

    delimiter: Annotated[str, Field(pattern=DELIMITER)] = ","

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        delimiter = self.delimiter.encode()
        pieces = cut(
            records(lines(checked_content(source)), delimiter),
            shard_rows=shard_rows,
            shard_bytes=shard_bytes,
            is_blank=is_blank,
            header=lambda record, size: header(record, size, delimiter, columns),
        )
        return Cut(("string",) * len(columns.extra), pieces)

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        delimiter = self.delimiter.encode()
        stream = records(lines(chunks(source, shard.start, shard.stop)), delimiter)
        rows = Rows(columns, lambda row: f"record {row + 1}")
        at_id = None if columns.id is None else shard.header.index(columns.id)
        at = [shard.header.index(name) for name in (*columns.extra, *columns.text.values())]
        lists = [
            (place, role, name)
            for place, (role, name) in enumerate(columns.text.items(), len(columns.extra))
            if role in LISTS
        ]
        for number, (record, size) in enumerate(stream, shard.first_row):
            if size > max_row_bytes:
                rows.bad(number, Problem(codes.ROW_TOO_LARGE, f"{size} bytes, the limit is {max_row_bytes}"))
                continue
            content = without_return(record, size)
            if not content:
                continue
            try:
                content.decode()
            except UnicodeDecodeError as error:
                rows.bad(number, Problem(codes.INVALID_UTF8, f"invalid UTF-8 at byte {error.start}"))
                continue
            values = fields(content, delimiter)
            if values is None:
                rows.bad(number, Problem(codes.MALFORMED_CSV, "a quote is opened and never closed"))
            elif len(values) != len(shard.header):
                problem = Problem(codes.MALFORMED_CSV, f"{len(values)} fields, the header has {len(shard.header)}")
                rows.bad(number, problem)
            else:
                id = b"" if at_id is None else values[at_id]
                taken: list[Value] = [values[index] for index in at]
                wrong = None
                for place, role, name in lists:
                    text = text_of(role, values[at[place]].decode(), name)
                    if isinstance(text, Problem):
                        wrong = text
                    else:
                        taken[place] = text
                if wrong is None:
                    rows.good(number, id, taken)
                else:
                    rows.bad(number, wrong, id, taken[: len(columns.extra)])
        return rows.table()


class Tsv(Csv):
    """As CSV, with tabs."""

    name: ClassVar[str] = "tsv"
    endings: ClassVar[tuple[str, ...]] = (".tsv",)
    related: ClassVar[tuple[str, ...]] = ()

    delimiter: Annotated[str, Field(pattern=DELIMITER)] = "\t"


def is_blank(record: bytes, size: int) -> bool:
    return not without_return(record, size)


def header(record: bytes, size: int, delimiter: bytes, columns: Columns) -> tuple[str, ...]:
    """The names of the columns. Raises Damaged where there are none, or not those that the job reads."""
    names: list[str] | None = None
    if size <= MAX_ROW_BYTES:
        try:
            values = fields(without_return(record, size).removeprefix(BOM), delimiter)
            names = None if values is None else [value.decode() for value in values]
        except UnicodeDecodeError:
            raise Damaged(codes.WRONG_FORMAT, "the header is not UTF-8") from None
    if names is None:
        raise Damaged(codes.WRONG_FORMAT, "the header is too long, or a quote in it is never closed")
    check_names(names, columns.wanted)
    return tuple(names)


def records(found: Iterator[tuple[bytes, int]], delimiter: bytes) -> Iterator[tuple[bytes, int]]:
    """Join the lines of a record whose quoted fields hold newlines. Yields the record and its size with the newline.

    A record over MAX_ROW_BYTES comes cut. A single line over it ends its record, whatever quotes it held.
    """
    held: list[bytes] = []
    size = 0
    is_open = False
    for line, length in found:
        if not is_open and b'"' not in line:
            yield line, length
            continue
        is_open = length <= MAX_ROW_BYTES and _is_open_after(line, is_open, delimiter + b'"')
        if size <= MAX_ROW_BYTES:
            held.append(line)
        size += length
        if not is_open:
            yield b"\n".join(held), size
            held, size = [], 0
    if held:
        yield b"\n".join(held), size


def _is_open_after(line: bytes, is_open: bool, opening: bytes) -> bool:
    """Whether a quoted field goes on at the end of the line."""
    position = 0
    if not is_open and line.startswith(b'"'):
        is_open, position = True, 1
    while True:
        if is_open:
            position = line.find(b'"', position) + 1
            if position == 0:
                return True
            if line.startswith(b'"', position):  # a doubled quote is content
                position += 1
                continue
            is_open = False
        position = line.find(opening, position) + len(opening)
        if position < len(opening):
            return False
        is_open = True


def fields(record: bytes, delimiter: bytes) -> list[bytes] | None:
    """The fields of one record; None where a quote is never closed."""
    if b'"' not in record:
        return record.split(delimiter)
    values = []
    position = 0
    while True:
        parts = []
        if record.startswith(b'"', position):
            while True:
                position += 1
                end = record.find(b'"', position)
                if end < 0:
                    return None
                parts.append(record[position:end])
                position = end + 1
                if not record.startswith(b'"', position):
                    break
                parts.append(b'"')
        end = record.find(delimiter, position)
        parts.append(record[position:] if end < 0 else record[position:end])
        values.append(b"".join(parts))
        if end < 0:
            return values
        position = end + 1
