"""How CSV is written: what stands between fields, around them, and before what is content."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from xlmr_ray.batch.input.readers.raw import MAX_ROW_BYTES, without_return


def is_blank(record: bytes, size: int) -> bool:
    return not without_return(record, size)


@dataclass(frozen=True)
class Dialect:
    """One byte each; no `quote` or `escape` where they are empty. A doubled quote in quotes is a quote."""

    delimiter: bytes = b","
    quote: bytes = b'"'
    escape: bytes = b""

    def records(self, found: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int, int]]:
        """Join the lines of a record whose newlines are quoted or escaped. Yields the record, its size with the
        newline, and its lines.

        A record over MAX_ROW_BYTES comes cut. A single line over it ends its record, whatever quotes it held.
        """
        held: list[bytes] = []
        size = count = 0
        is_open = quoted = False
        for line, length in found:
            if not is_open and not (self.quote and self.quote in line) and not (self.escape and self.escape in line):
                yield line, length, 1
                continue
            is_open, quoted = (False, False) if length > MAX_ROW_BYTES else self._after(line, is_open, quoted)
            if size <= MAX_ROW_BYTES:
                held.append(line)
            size += length
            count += 1
            if not is_open:
                yield b"\n".join(held), size, count
                held, size, count = [], 0, 0
        if held:
            ended = b"\n" if not quoted and size > sum(map(len, held)) + count - 1 else b""  # escaped, so it is content
            yield b"\n".join(held) + ended, size, count

    def _after(self, line: bytes, is_open: bool, quoted: bool) -> tuple[bool, bool]:
        """Whether the record goes on after the line, and whether in quotes; whether it did so before it."""
        if self.escape:
            return self._after_escapes(line, is_open, quoted)
        quoted = self._after_quotes(line, quoted)
        return quoted, quoted

    def _after_quotes(self, line: bytes, quoted: bool) -> bool:
        quote, opening = self.quote, self.delimiter + self.quote
        position = 0
        if not quoted and line.startswith(quote):
            quoted, position = True, 1
        while True:
            if quoted:
                position = line.find(quote, position) + 1
                if position == 0:
                    return True
                if line.startswith(quote, position):  # a doubled quote is content
                    position += 1
                    continue
                quoted = False
            position = line.find(opening, position) + len(opening)
            if position < len(opening):
                return False
            quoted = True

    def _after_escapes(self, line: bytes, is_open: bool, quoted: bool) -> tuple[bool, bool]:
        start = -1 if is_open else 0  # of the field, if it begins in this line
        closed = -1  # where a quote was closed: a doubled one opens it again
        for found in self._special.finditer(line):
            mark = found.group()
            if mark.startswith(self.escape):
                if len(mark) == 1:
                    return True, quoted
            elif mark == self.delimiter:
                start = start if quoted else found.end()
            elif quoted:
                quoted, closed = False, found.end()
            elif found.start() in (start, closed):
                quoted = True
        return quoted, quoted

    @cached_property
    def _special(self) -> re.Pattern[bytes]:
        marks = [re.escape(mark) for mark in (self.delimiter, self.quote) if mark]
        return re.compile(b"|".join([re.escape(self.escape) + b"(?s:.)?", *marks]))

    def fields(self, record: bytes) -> list[bytes] | None:
        """The fields of one record; None where a quote is never closed, or in a record of several lines is closed
        within a field.
        """
        if not (self.quote and self.quote in record) and not (self.escape and self.escape in record):
            return record.split(self.delimiter)
        values = []
        position = 0
        while True:
            value, position, closed = self._quoted(record, position)
            if position < 0:
                return None
            rest, end = self._plain(record, position)
            if closed and rest and b"\n" in record:
                return None
            values.append(value + rest)
            if end < 0:
                return values
            position = end + 1

    def _quoted(self, record: bytes, position: int) -> tuple[bytes, int, bool]:
        """The quoted part of a field, where it ends (-1: never), and whether there is one."""
        if not self.quote or not record.startswith(self.quote, position):
            return b"", position, False
        parts = []
        position += 1
        while found := self._in_quotes.search(record, position):
            parts.append(record[position : found.start()])
            position = found.end()
            mark = found.group()
            if mark == self.quote:
                return b"".join(parts), position, True
            parts.append(mark[1:])
        return b"", -1, True

    @cached_property
    def _in_quotes(self) -> re.Pattern[bytes]:
        quote = re.escape(self.quote)
        escaped = [re.escape(self.escape) + b"(?s:.)"] if self.escape else []
        return re.compile(b"|".join([quote + quote, quote, *escaped]))

    def _plain(self, record: bytes, position: int) -> tuple[bytes, int]:
        """A field, or the rest of one, without quotes, and where the delimiter after it is (-1: there is none)."""
        end = record.find(self.delimiter, position)
        if not self.escape or record.find(self.escape, position, len(record) if end < 0 else end) < 0:
            return (record[position:], -1) if end < 0 else (record[position:end], end)
        parts = []
        for found in self._outside.finditer(record, position):
            parts.append(record[position : found.start()])
            if found.group() == self.delimiter:
                return b"".join(parts), found.start()
            parts.append(found.group()[1:])
            position = found.end()
        return b"".join([*parts, record[position:]]), -1

    @cached_property
    def _outside(self) -> re.Pattern[bytes]:
        return re.compile(b"|".join([re.escape(self.escape) + b"(?s:.)?", re.escape(self.delimiter)]))
