"""CSV and TSV with a header, quoted as in RFC 4180. `row` counts records from 0, the header not counted.

A blank line outside quotes is no row, but it counts. Every value is a string; an empty field is an empty string.
As in Python's csv module, a quote opens a quoted field only at the field's start and is an ordinary character
elsewhere. That module itself is not used: it tells no byte offsets, takes a lone CR for a line end, and caps a field
by a process-wide setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, Columns, Problem, Rows, Value, text_of
from xlmr_ray.batch.input.readers.raw import MAX_ROW_BYTES, without_return

DELIMITERS = {"csv": b",", "tsv": b"\t"}


def read(
    lines: Iterator[tuple[bytes, int]],
    first_row: int,
    columns: Columns,
    max_row_bytes: int,
    *,
    header: Sequence[str],
    delimiter: bytes,
) -> pa.Table:
    """Read lines (content, size with newline) that start with record `first_row` (from 0) of the file."""
    rows = Rows(columns, lambda row: f"record {row + 1}")
    at_id = None if columns.id is None else header.index(columns.id)
    at = [header.index(name) for name in (*columns.extra, *columns.text.values())]
    lists = [
        (place, role, name)
        for place, (role, name) in enumerate(columns.text.items(), len(columns.extra))
        if role in LISTS
    ]
    for number, (record, size) in enumerate(records(lines, delimiter), first_row):
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
        elif len(values) != len(header):
            problem = Problem(codes.MALFORMED_CSV, f"{len(values)} fields, the header has {len(header)}")
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


def records(lines: Iterator[tuple[bytes, int]], delimiter: bytes) -> Iterator[tuple[bytes, int]]:
    """Join the lines of a record whose quoted fields hold newlines. Yields the record and its size with the newline.

    A record over MAX_ROW_BYTES comes cut. A single line over it ends its record, whatever quotes it held.
    """
    held: list[bytes] = []
    size = 0
    is_open = False
    for line, length in lines:
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
