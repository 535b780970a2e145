"""CSV and TSV with a header, quoted as in RFC 4180, or as the job's options say. `row` counts records from 0, the
header not counted.

A blank line outside quotes is no row, but it counts. Every value is a string; an empty field is an empty string.
As in Python's csv module, a quote opens a quoted field only at the field's start and is an ordinary character
elsewhere; what follows an escape character is content, in quotes or not. That module itself is not used: it gives no
byte offsets, takes a lone CR for a line end, and caps a field by a process-wide setting.

A quote that is never closed swallows the lines up to the next quote, or to the end of the file. A record of several
lines in which a quote is closed within a field, or whose fields are not as many as the header's, is an error row, and
its other lines count as lost.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Self

import pyarrow as pa
from pydantic import Field, model_validator

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, Columns, Problem, Rows, Value, role_text
from xlmr_ray.batch.input.readers.dialect import Dialect, is_blank
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import (
    BOM,
    MAX_ROW_BYTES,
    BadFile,
    Source,
    chunks,
    lines,
    missing,
    without_return,
)
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.text.plural import plural

CHARACTER = r"^[\x00-\x09\x0b\x0c\x0e-\x7f]$"  # ASCII, but no CR or newline


class Csv(Reader):
    """`delimiter`: one ASCII character between fields. `quote`: the one around fields, null where quotes are ordinary
    characters. `escape`: the one after which a quote, a delimiter or a line end is content, such as a backslash.
    `header`: the names of the columns, for files whose first line is a row.
    """

    name: ClassVar[str] = "csv"
    endings: ClassVar[tuple[str, ...]] = (".csv",)
    compressed: ClassVar[bool] = True
    typed: ClassVar[bool] = False
    related: ClassVar[tuple[str, ...]] = ("tsv",)

    delimiter: Annotated[str, Field(pattern=CHARACTER)] = ","
    quote: Annotated[str, Field(pattern=CHARACTER)] | None = '"'
    escape: Annotated[str, Field(pattern=CHARACTER)] | None = None
    header: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def characters_differ(self) -> Self:
        given = [one for one in (self.delimiter, self.quote, self.escape) if one is not None]
        if len(set(given)) < len(given):
            raise ValueError("delimiter, quote and escape: expected three different characters")
        return self

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.delimiter.encode(), (self.quote or "").encode(), (self.escape or "").encode())

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        partitions = source.partitions

        def names(record: bytes, size: int) -> tuple[str, ...]:
            return self.names(record, size, columns, partitions)

        if self.header is not None:
            self.check_header(self.header, columns, source.partitions)
        pieces = cut(
            self.counted(source, columns),
            shard_rows=shard_rows,
            shard_bytes=shard_bytes,
            is_blank=is_blank,
            header=names if self.header is None else None,
            names=self.header or (),
        )
        return Cut((pa.string(),) * len(columns.extra), pieces)

    def counted(self, source: Source, columns: Columns) -> Iterator[tuple[bytes, int]]:
        """The records. At their end raises BadFile with the number of lines that open quotes swallowed, if any."""
        dialect = self.dialect
        count = None if self.header is None else len(self.header)
        swallowed, first, number = 0, 0, 0
        for record, size, held in dialect.records(lines(checked_content(source))):
            yield record, size
            if count is None:
                count = None if is_blank(record, size) else len(self.names(record, size, columns, source.partitions))
                continue
            number += 1
            if held > 1 and (values := self.split(record, size)) is not None and len(values) == count:
                continue
            if held > 1:
                swallowed, first = swallowed + held - 1, first or number
        if swallowed:
            raise BadFile(
                codes.SWALLOWED_LINES,
                f"malformed records of several lines, the first is record {first}: a quote that is not closed where "
                f"its field ends swallows lines; mend it, or set input.{self.name}.quote: null if quotes are "
                "ordinary characters",
                rows=swallowed,
                estimated=True,
            )

    def split(self, record: bytes, size: int) -> list[bytes] | None:
        """The fields of a record; None where it is over the limit, or a quote is not closed where its field ends."""
        return self.dialect.fields(without_return(record, size)) if size <= MAX_ROW_BYTES else None

    def names(
        self, record: bytes, size: int, columns: Columns, partitions: Mapping[str, str | None]
    ) -> tuple[str, ...]:
        """The header's names. Raises BadFile where there are none, or not those that the job reads."""
        content = record.removeprefix(BOM)
        values = self.split(content, size - len(record) + len(content))
        if values is None:
            raise BadFile(codes.WRONG_FORMAT, "the header is too long, or a quote in it is never closed")
        try:
            names = tuple(value.decode() for value in values)
        except UnicodeDecodeError:
            raise BadFile(codes.WRONG_FORMAT, "the header is not UTF-8") from None
        self.check_header(names, columns, partitions)
        return names

    def check_header(self, names: tuple[str, ...], columns: Columns, partitions: Mapping[str, str | None]) -> None:
        """Raises BadFile unless each column that the job reads is there once, or is a partition. The header's own words
        are not shown: where a file has no header, they are a document's. Only one that is nearly the name looked for is
        a name.
        """
        for wanted in columns.wanted:
            if (count := names.count(wanted)) > 1:
                raise BadFile(codes.AMBIGUOUS_COLUMN, f"column {wanted!r} is there more than once in the header")
            if not count and wanted not in partitions:
                near = difflib.get_close_matches(wanted, [name for name in names if len(name) < 40], 1, 0.75)
                hint = f"if there is none, name the columns: input.{self.name}.header"
                hint = f"did you mean {near[0]!r}?" if near else hint
                raise missing(wanted, f"the header has {plural(len(names), 'field')}; {hint}")

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        dialect = self.dialect
        stream = dialect.records(lines(chunks(source, shard.start, shard.stop)))
        rows = Rows(columns, lambda row: f"record {row + 1}")
        constant = {name: value for name, value in source.partitions.items() if name not in shard.header}
        header = [*shard.header, *constant]
        behind: list[Value] = list(constant.values())
        at_id = None if columns.id is None else header.index(columns.id)
        at = [header.index(name) for name in (*columns.extra_columns, *columns.text.values())]
        checked = [  # other values are strings
            (index, role, name)
            for index, (role, name) in enumerate(columns.text.items(), len(columns.extra))
            if role in LISTS or constant.get(name, "") is None
        ]
        for number, (record, size, _) in enumerate(stream, shard.first_row):
            if size > max_row_bytes:
                rows.bad(number, Problem(codes.ROW_TOO_LARGE, f"{size} bytes, the limit is {max_row_bytes}"))
                continue
            content = without_return(record, size)
            if number == 0 and self.header is not None:
                content = content.removeprefix(BOM)
            if not content:
                continue
            try:
                content.decode()
            except UnicodeDecodeError as error:
                rows.bad(number, Problem(codes.INVALID_UTF8, f"invalid UTF-8 at byte {error.start}"))
                continue
            values = dialect.fields(content)
            if values is None:
                rows.bad(number, Problem(codes.MALFORMED_CSV, "a quote is not closed where its field ends"))
            elif len(values) != len(shard.header):
                problem = Problem(codes.MALFORMED_CSV, f"{len(values)} fields, the header has {len(shard.header)}")
                rows.bad(number, problem)
            else:
                row = [*values, *behind] if behind else values
                id = b"" if at_id is None else row[at_id] or b""
                taken: list[Value] = [row[index] for index in at]
                wrong = None
                for index, role, name in checked:
                    value = taken[index]
                    text = role_text(role, value.decode() if isinstance(value, bytes) else value, name)
                    if isinstance(text, Problem):
                        wrong = text
                    else:
                        taken[index] = text
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

    delimiter: Annotated[str, Field(pattern=CHARACTER)] = "\t"
