"""Plain text: one document a line. An empty line is an empty document, so that line and row numbers agree."""

from __future__ import annotations

from typing import ClassVar

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns, Problem, Rows, role_text
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import BOM, Source, chunks, lines, missing, without_return
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard


class PlainText(Reader):
    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = (".txt",)
    compressed: ClassVar[bool] = True
    typed: ClassVar[bool] = False

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        # A line has no columns: it is the text, whatever the job calls it.
        for name in columns.wanted:
            if name != self.own(columns) and name not in source.partitions:
                raise missing(name, "a file of text has lines, and no columns")
        records = lines(checked_content(source))
        pieces = cut(records, shard_rows=shard_rows, shard_bytes=shard_bytes, is_blank=lambda line, size: False)
        return Cut((pa.string(),) * len(columns.extra), pieces)

    def own(self, columns: Columns) -> str:
        return next(iter(columns.text.values()))

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        rows = Rows(columns, lambda row: f"line {row + 1}")
        own, partitions = self.own(columns), source.partitions
        named = [*columns.extra_columns, *columns.text.values()]
        of_path = [role_text(role, partitions[name], name) for role, name in columns.text.items() if name != own]
        problem = next((one for one in of_path if isinstance(one, Problem)), None)
        id = partitions.get(columns.id or "") or ""
        for number, (line, size) in enumerate(lines(chunks(source, shard.start, shard.stop)), shard.first_row):
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
                continue
            values = [content if name == own else partitions[name] for name in named]
            if problem is not None:
                rows.bad(number, problem, id, values[: len(columns.extra)])
            else:
                rows.good(number, id, values)
        return rows.table()
