"""Plain text: one document a line. An empty line is an empty document, so that line and row numbers agree."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns, Problem, Rows
from xlmr_ray.batch.input.readers.raw import BOM, without_return


def read(lines: Iterator[tuple[bytes, int]], first_row: int, columns: Columns, max_row_bytes: int) -> pa.Table:
    """Read lines (content, size with newline) of which the first is line `first_row` (from 0) of the file."""
    rows = Rows(columns, lambda row: f"line {row + 1}")
    for number, (line, size) in enumerate(lines, first_row):
        if size > max_row_bytes:
            rows.bad(number, Problem(codes.ROW_TOO_LARGE, f"{size} bytes, the limit is {max_row_bytes}"))
            continue
        content = without_return(line, size)
        if number == 0:
            content = content.removeprefix(BOM)
        try:
            content.decode()
        except UnicodeDecodeError as error:
            rows.bad(number, Problem(codes.INVALID_UTF8, f"invalid UTF-8 at byte {error.start}"))
        else:
            rows.good(number, "", (content,))
    return rows.table()
