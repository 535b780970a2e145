"""Web archives: WARC, and WET, which has the text of each page. The one file that imports fastwarc and resiliparse.

Format: iipc.github.io/warc-specifications.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns, Problem, Rows, role_text
from xlmr_ray.batch.input.readers.line_shards import checked_content, cut
from xlmr_ray.batch.input.readers.raw import BadFile, Source, chunks, missing
from xlmr_ray.batch.input.readers.reader import Cut, Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    from fastwarc import WarcRecord

TEXT = "text"
HTML = ("text/html", "application/xhtml+xml")


class Warc(Reader):
    """Rows are records of the type `conversion`, the text of a page. With `extract`, so are those of `response` and
    `resource` that hold HTML: their text is what that library makes of it.

    The columns are `text`, and the record's header fields by their names: `WARC-Record-ID`, `WARC-Target-URI`,
    `WARC-Date`, …, null where a record has none. Positions count all records of the file.
    """

    name: ClassVar[str] = "warc"
    endings: ClassVar[tuple[str, ...]] = (".warc", ".wet")
    compressed: ClassVar[bool] = True
    typed: ClassVar[bool] = False

    extract: Literal["resiliparse"] | None = None

    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        for name in columns.wanted:
            if name != TEXT and not is_header_field(name) and name not in source.partitions:
                raise missing(name, f"a web archive has {TEXT!r}, and header fields such as 'WARC-Target-URI'")
        self._check_installed()
        records = self._sizes(source)
        pieces = cut(records, shard_rows=shard_rows, shard_bytes=shard_bytes, is_blank=lambda row, size: not row)
        return Cut((pa.string(),) * len(columns.extra), pieces)

    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        rows = Rows(columns, lambda row: f"record {row}")
        content = _Content(source, chunks(source, shard.start, shard.stop))
        for number, record in enumerate(content.records(), shard.first_row):
            if not self._is_row(record, decode=True):
                continue
            named: dict[str, str | None] = {
                name: record.headers.get(name) if is_header_field(name) else source.partitions.get(name)
                for name in columns.wanted
            }
            text = self._text(record, max_row_bytes)
            if isinstance(text, str):
                named[TEXT] = text
            id = named.get(columns.id or "") or ""
            kept = [named[name] for name in columns.extra_columns]
            values = [
                text if name == TEXT else role_text(role, named[name], name) for role, name in columns.text.items()
            ]
            problem = next((value for value in values if isinstance(value, Problem)), None)
            if problem is not None:
                rows.bad(number, problem, id, kept)
            else:
                rows.good(number, id, [*kept, *(value for value in values if isinstance(value, str))])
        if content.failure is not None:  # fastwarc took it for the end, perhaps of a text
            raise content.failure
        return rows.table()

    def _sizes(self, source: Source) -> Iterator[tuple[bytes, int]]:
        """Of each record whether it is a row, and its bytes up to the next one. Raises BadFile after those before."""
        content = _Content(source, checked_content(source))
        last: tuple[bytes, int] | None = None
        for number, record in enumerate(content.records()):
            if last is not None:
                yield last[0], record.stream_pos - last[1]
            last = None
            row = b"row" if self._is_row(record, decode=False) else b""
            cut_off = record.reader.consume() < record.content_length
            if cut_off or (content.ends_anyhow and (record.is_http or not record.content_length)):
                raise content.failure or BadFile(codes.CORRUPT_STREAM, f"ends in record {number}", at=source.input.size)
            last = row, record.stream_pos
        if last is not None:
            yield last[0], content.count - last[1]
        if content.failure is not None:
            raise content.failure

    def _is_row(self, record: WarcRecord, *, decode: bool) -> bool:
        """Raises BadFile for pages as they were sent, which nothing makes text of."""
        kind = str(record.record_type)
        if kind not in ("response", "resource"):
            return kind == "conversion"
        if record.is_http:
            record.parse_http(auto_decode="all" if decode else "none")
        type = record.http_content_type if record.is_http else record.headers.get("Content-Type")
        if (type or "").partition(";")[0].strip().lower() not in HTML:
            return False
        if self.extract is None:
            raise BadFile(
                codes.WRONG_FORMAT,
                "holds pages as HTML; read the archive's .wet files, or say input.warc: {extract: resiliparse}",
            )
        return True

    def _text(self, record: WarcRecord, max_row_bytes: int) -> str | Problem:
        if record.content_length > max_row_bytes:
            size = f"{record.content_length} bytes, the limit is {max_row_bytes}"
            return Problem(codes.ROW_TOO_LARGE, size)
        data = record.reader.read()
        if str(record.record_type) != "conversion":
            return _of_html(data, record.http_charset if record.is_http else _charset(record))
        charset = _charset(record) or "utf-8"
        try:
            return data.decode(charset)
        except UnicodeDecodeError as error:
            return Problem(codes.INVALID_UTF8, f"invalid {charset} at byte {error.start}")
        except LookupError:
            return Problem(codes.INVALID_UTF8, "its Content-Type names a character set that is not known")

    def _check_installed(self) -> None:
        try:
            import fastwarc  # noqa: F401

            if self.extract is not None:
                import resiliparse.extract.html2text  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"input: web archives need a package that is not installed ({error.name}): pip install 'xlmr-ray[warc]'"
            ) from None


class _Content:
    """Inflated content as fastwarc reads it, and how much it has taken. What its blocks raise is the end to fastwarc,
    so that it gives the records before that; it is kept as `failure`.
    """

    def __init__(self, source: Source, blocks: Iterator[bytes]) -> None:
        self.source, self.blocks = source, blocks
        self.count, self.held, self.last = 0, b"", b""
        self.ends_anyhow = False  # and not as a record does: fastwarc gives one whose header is cut, without content
        self.failure: BaseException | None = None
        self.found = False  # a record

    def read(self, size: int = -1) -> bytes:
        try:
            self.held = self.held or next(self.blocks, b"")
        except BaseException as error:
            self.failure, self.blocks = error, iter(())
        data = self.held[:size] if size >= 0 else self.held
        self.held = self.held[len(data) :]
        self.count += len(data)
        self.last = (self.last + data)[-4:]
        self.ends_anyhow = not data and self.last != b"\r\n\r\n"
        return data

    def tell(self) -> int:
        return self.count

    def records(self) -> Iterator[WarcRecord]:
        """Raises BadFile for what is no archive."""
        from fastwarc import ArchiveIterator

        try:
            for record in ArchiveIterator(self, parse_http=False, stream_detect=False):  # type: ignore[arg-type]
                self.found = True
                yield record
        except (OSError, ValueError) as error:
            if self.failure is not None:
                raise self.failure from None
            at = 0 if self.source.input.compression else self.count
            code = codes.CORRUPT_STREAM if self.found else codes.WRONG_FORMAT
            raise BadFile(code, f"no record of a web archive: {error}", at=at) from None


def is_header_field(name: str) -> bool:
    """Whether a column is one of a record's header fields."""
    return name.lower().startswith(("warc-", "content-"))


def _charset(record: WarcRecord) -> str | None:
    found = re.search(r"charset=\"?([\w.:-]+)", record.headers.get("Content-Type") or "", re.IGNORECASE)
    return found[1] if found else None


def _of_html(data: bytes, charset: str | None) -> str:
    """Its visible text. The character set is that of the HTTP header; else that of the page's `meta`; else guessed of
    its bytes. What it has not is U+FFFD, as in a browser.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import detect_encoding
    from resiliparse.parse.html import HTMLTree

    guessed = detect_encoding(data, from_html_meta=True) or "utf-8"
    try:
        tree = HTMLTree.parse_from_bytes(data, charset or guessed, errors="replace")
    except LookupError:  # a name that is none
        tree = HTMLTree.parse_from_bytes(data, guessed, errors="replace")
    return str(extract_plain_text(tree))
