"""JSON Lines: one object a line. A blank line is no row, but it counts: `row` is the line's number less one.

Lines are parsed one by one, so that what becomes of a line never depends on the lines beside it.
Kept fields are strings in every shard: a string as it is, null or missing as null, anything else as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, Columns, Problem, Rows, kept_text, role_text
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import BOM, MAX_ROW_BYTES, BadFile, Source, chunks, lines
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.text.json_type import json_type

MAX_DEPTH = 100
MISSING = object()  # a field that is not there, unlike one that is null
NONE: Mapping[str, Any] = {}
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_decode = json.JSONDecoder(strict=False).raw_decode  # control characters may stand in a string as they are


class JsonLines(Reader):
    name: ClassVar[str] = "jsonl"
    endings: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    compressed: ClassVar[bool] = True
    typed: ClassVar[bool] = False

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        records = lines(one_a_line(checked_content(source)))
        pieces = cut(records, shard_rows=shard_rows, shard_bytes=shard_bytes, is_blank=is_blank_line)
        return Cut((pa.string(),) * len(columns.extra), pieces)

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        rows = Rows(columns, lambda row: f"line {row + 1}")
        keep, partitions = columns.extra_columns, source.partitions
        (role, name), *others = columns.text.items()
        only = name if not others and role not in LISTS and not keep and columns.id is None else None
        for number, (line, size) in enumerate(lines(chunks(source, shard.start, shard.stop)), shard.first_row):
            if is_blank_line(line, size):
                continue
            value = parse(line, size, max_row_bytes)
            if isinstance(value, Problem):
                rows.bad(number, value)
                continue
            if only is not None and type(text := value.get(only)) is str:  # most jobs, and a third faster
                rows.good(number, "", (text,))
                continue
            named = {name: lookup(value, name, partitions) for name in columns.wanted}
            kept = [kept_text(None if named[name] is MISSING else named[name]) for name in keep]
            id, problem = ("", None) if columns.id is None else _row_id(named[columns.id], columns.id)
            texts = []
            for role, name in columns.text.items():
                text = role_text(role, named[name], name, present=named[name] is not MISSING)
                if isinstance(text, Problem):
                    problem = problem or text
                else:
                    texts.append(text)
            if problem is None:
                rows.good(number, id, [*kept, *texts])
            else:
                rows.bad(number, problem, id, kept)
        return rows.table()


def one_a_line(content: Iterator[bytes]) -> Iterator[bytes]:
    """The content. Raises BadFile where it begins as one JSON document over many lines does."""
    first = True
    for block in content:
        if first:
            line, newline, _ = block.partition(b"\n")
            if newline and line.removeprefix(BOM).strip() in (b"[", b"{"):
                message = "one JSON document over many lines; expected JSON Lines, an object a line"
                raise BadFile(codes.WRONG_FORMAT, message)
            first = False
        yield block


def is_blank_line(line: bytes, size: int) -> bool:
    return not line or line.isspace()


def parse(line: bytes, size: int, max_row_bytes: int = MAX_ROW_BYTES) -> dict[str, Any] | Problem:
    """One line as an object, or what is wrong with it. Where a key is twice in the object the last one counts."""
    if size > max_row_bytes:
        return Problem(codes.ROW_TOO_LARGE, f"{size} bytes, the limit is {max_row_bytes}")
    try:
        text = line.removeprefix(BOM).strip(b" \t\r").decode()
    except UnicodeDecodeError as error:
        if size == len(line) and error.reason == "unexpected end of data":
            return Problem(codes.TRUNCATED_LINE, "the file ends in the middle of a character")
        return Problem(codes.INVALID_UTF8, f"invalid UTF-8 at byte {error.start}")
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH:
        return Problem(codes.NESTING_TOO_DEEP, f"nested deeper than {MAX_DEPTH} levels")
    try:
        value, end = _decode(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        if size == len(line) and _is_cut(error, text):
            return Problem(codes.TRUNCATED_LINE, "the file ends in the middle of a value")
        return Problem(codes.MALFORMED_JSON, f"not JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        return Problem(codes.NESTING_TOO_DEEP, "nested too deep to be parsed")
    except ValueError:  # Python refuses to make an integer of more than 4300 digits
        return Problem(codes.MALFORMED_JSON, "a number has too many digits")
    if not isinstance(value, dict):
        return Problem(codes.NOT_AN_OBJECT, f"{json_type(value)}, not an object")
    return value


def lookup(value: Mapping[str, Any], name: str, partitions: Mapping[str, Any] = NONE) -> Any:
    """The field of this name; else the one in nested objects to which its parts, joined by dots, lead; else the
    partition; else `MISSING`.
    """
    if name in value:
        return value[name]
    for index in (index for index, char in enumerate(name) if char == "."):
        inner = value.get(name[:index], MISSING)
        if inner is None:
            return None
        if isinstance(inner, dict) and (found := lookup(inner, name[index + 1 :])) is not MISSING:
            return found
    return partitions.get(name, MISSING)


def _row_id(id: Any, name: str) -> tuple[str, Problem | None]:
    if id is None or id is MISSING:
        return "", None  # a row without an id is still found by its position
    if isinstance(id, str):
        return id, None
    if isinstance(id, int) and not isinstance(id, bool):
        return str(id), None
    return "", Problem(codes.WRONG_ID_TYPE, f"field {name!r} is {json_type(id)}, not a string or an integer")


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text is the start of an object that is not finished."""
    unfinished = error.pos >= len(text) or error.msg.startswith("Unterminated") or not text.endswith("}")
    return text.startswith("{") and unfinished


def _depth(line: bytes) -> int:
    """Levels of nesting, brackets in strings not counted."""
    depth = deepest = 0
    for char in _STRING.sub(b"", line):
        if char in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif char in b"]}":
            depth -= 1
    return deepest
