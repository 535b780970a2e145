"""Bytes of an input, in bounded memory: ranges, decompression, lines. Tells damaged data from a store that fails."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.constants import constants_from_text
from xlmr_ray.batch.input.file import InputChanged, InputFile, check_unchanged
from xlmr_ray.batch.input.partitions import partitions_of
from xlmr_ray.batch.input.readers import zstd
from xlmr_ray.batch.store.filesystem import filesystem
from xlmr_ray.errors import UserError

CHUNK = 8 << 20  # bytes asked of the store at a time
BLOCK = 64 << 10  # bytes inflated at a time
MAX_ROW_BYTES = 64 << 20  # no line is held beyond this; over it, a row is an error row
BOM = b"\xef\xbb\xbf"
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


class BadFile(Exception):
    """The file, or the rest of it, cannot be read as what it is named. Never raised for an error of the store.

    `rows` are lost with it, where that is known, or `estimated`; else `at` says after how many bytes of the file.
    """

    def __init__(
        self, code: str, message: str, *, rows: int | None = None, estimated: bool = False, at: int = 0
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.rows, self.estimated, self.at = code, message, rows, estimated, at


def missing(name: str, hint: str) -> BadFile:
    """What to raise where a column that the job reads is not in the file."""
    return BadFile(codes.MISSING_COLUMN, f"column {name!r} is missing; {hint}")


class Source:
    """One input opened for reading by ranges, as a file object for Arrow.

    Arrow raises OSError both for damaged data and for what its file raised; `failure` keeps the latter apart.
    `tail` holds the last bytes once they were asked for; reads of them are answered from it.

    A source that is kept between neighbouring shards is read on where the last one ended: `content` and `opened` are
    what `chunks` and the format's reader have left there. `until`: the `stop` of the last of these neighbours, up to
    which may be read ahead. `unchecked`: something was asked of the store since `check`.
    """

    def __init__(self, found: InputFile, options: Mapping[str, object] | None = None) -> None:
        self.input = found
        self.failure: BaseException | None = None
        self._fs, self._path = filesystem(found.key, options=options)
        self._position = 0
        self.tail = b""
        self.content: FileContent | None = None
        self.opened: Any = None
        self.until = 0
        self.unchecked = True

    @property
    def partitions(self) -> dict[str, str | None]:
        """The columns that the file's path names, as Hive and Spark lay tables out; see `partitions_of`."""
        return partitions_of(self.input.key)

    @property
    def constants(self) -> dict[str, pa.Scalar]:
        """Columns that are not in the file, with their values: those of the table that it is of, and of its path."""
        of_path = {name: pa.scalar(value, pa.string()) for name, value in self.partitions.items()}
        return {**of_path, **constants_from_text(self.input.constants)}

    def info(self) -> Mapping[str, Any] | None:
        """What the store says of the object now; None where it is gone."""
        try:
            return cast(Mapping[str, Any], self._fs.info(self._path))
        except FileNotFoundError:
            return None

    def leave(self) -> None:
        """Lets go of what was kept for the next shard: at once, and not when Python finds the circle."""
        self.content = self.opened = None

    def check(self) -> None:
        """Raise InputChanged if the object is not the planned one."""
        check_unchanged(self.input, self.info())
        self.unchecked = False

    def range(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), cut at the planned size. Raises InputChanged where the object has become shorter."""
        stop = min(stop, self.input.size)
        if start >= stop:
            return b""
        first = self.input.size - len(self.tail)
        if start >= first:
            return self.tail[start - first : stop - first]
        if stop > first:
            return self.range(start, first) + self.tail[: stop - first]
        self.unchecked = True
        try:
            data = cast(bytes, self._fs.cat_file(self._path, start=start, end=stop))
            if len(data) > stop - start:
                raise UserError(f"{self.input.key}: its server sends no parts of it; copy it to a disk or a bucket")
            if len(data) != stop - start:
                raise InputChanged(f"{self.input.key}: shorter than when it was planned; start the job again")
        except BaseException as error:
            self.failure = error
            raise
        return data

    def keep_tail(self, size: int) -> bytes:
        """Read the last bytes once and answer later reads from them."""
        self.tail = self.range(max(0, self.input.size - size), self.input.size)
        return self.tail

    def read(self, size: int = -1) -> bytes:
        data = self.range(self._position, self.input.size if size is None or size < 0 else self._position + size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.input.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> Literal[True]:
        return True

    def seekable(self) -> Literal[True]:
        return True

    def writable(self) -> Literal[False]:
        return False

    closed: ClassVar[bool] = False

    def close(self) -> None:
        """Nothing: Arrow closes what it drops, and another reading of the source may have begun."""


def chunks(source: Source, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content's bytes [start, stop), offsets counted after decompression. `stop=None`: to the end.

    A stream that is cut or damaged gives what could be inflated, then raises BadFile. One that was read up to before
    `start` is read on, and left at `stop` to be read on from there.
    """
    content, source.content = source.content, None  # whoever breaks off leaves nothing behind
    if content is None or not content.reaches(start, stop):
        content = FileContent(source, start, stop)
    while stop is None or content.position < stop:
        block = content.next(stop)
        if block is None:
            return
        if content.position > start:
            yield block[max(0, start - content.position + len(block)) :]
    source.content = content


class FileContent:
    """A source's content, given out in order: blocks of it, of which the last one taken may be left in part."""

    def __init__(self, source: Source, start: int, stop: int | None) -> None:
        self.compressed = bool(source.input.compression)
        self.position = 0 if self.compressed else start  # up to which it was given out
        self.end = source.input.size if stop is None else max(stop, source.until)
        self.blocks = _inflated(source) if self.compressed else _uncompressed(source, start, self.end)
        self.held = b""

    def reaches(self, start: int, stop: int | None) -> bool:
        """Whether it is cheaper to go on than to begin anew."""
        if self.compressed:
            return self.position <= start
        return self.position <= start <= self.position + len(self.held) and stop is not None and stop <= self.end

    def next(self, stop: int | None) -> bytes | None:
        """The next block, cut at `stop`; None at the end."""
        block = self.held or next(self.blocks, None)
        if block is None:
            return None
        most = len(block) if stop is None else stop - self.position
        block, self.held = block[:most], block[most:]
        self.position += len(block)
        return block


def _uncompressed(source: Source, start: int, stop: int) -> Iterator[bytes]:
    for position in range(start, stop, CHUNK):
        yield source.range(position, min(position + CHUNK, stop))


def _inflated(source: Source) -> Iterator[bytes]:
    name = source.input.compression
    start = source.range(0, len(_MAGIC["zstd"]))
    if not start.startswith(_MAGIC[name]) and not (name == "zstd" and zstd.is_skippable(start)):
        raise BadFile(codes.WRONG_FORMAT, f"the ending says {name}, the content is not {name}")
    if name == "zstd":
        yield from _of_zstd(source)
        return
    stream, taken = _decompressor(source)
    position = 0
    while True:
        try:
            block = stream.read(BLOCK)
        except (pa.ArrowException, OSError) as error:
            if source.failure is not None:
                raise source.failure from None
            if rest := _before_damage(source, position):
                yield rest
            reason = f"{name} stream cut or damaged after {position + len(rest)} bytes of content: {error}"
            raise BadFile(codes.CORRUPT_STREAM, reason, at=taken.count) from None
        if not block:
            return
        position += len(block)
        yield block


def _of_zstd(source: Source) -> Iterator[bytes]:
    position = 0
    try:
        for content in zstd.inflated(source.range, source.input.size, CHUNK):
            position += len(content)
            for start in range(0, len(content), BLOCK):
                yield content[start : start + BLOCK]
    except zstd.NotZstd as error:
        reason = f"zstd stream cut or damaged after {position} bytes of content: {error}"
        raise BadFile(codes.CORRUPT_STREAM, reason, at=error.at) from None


class _Counted:
    """A stream for Arrow that knows how many bytes were taken from it, `step` at most at once; the buffer under it
    reads far ahead.
    """

    def __init__(self, stream: Any, step: int) -> None:
        self.stream, self.step, self.count, self.closed = stream, step, 0, False

    def read(self, size: int) -> bytes:
        data = cast(bytes, self.stream.read(min(size, self.step)))
        self.count += len(data)
        return data

    def readable(self) -> Literal[True]:
        return True

    def close(self) -> None:
        self.closed = True


def _decompressor(source: Source) -> tuple[Any, _Counted]:
    """The decompressed stream, and how much of the file it has taken."""
    source.seek(0)
    step = max(1 << 10, min(BLOCK, source.input.size // 64))
    taken = _Counted(pa.BufferedInputStream(pa.PythonFile(source, mode="r"), CHUNK), step)
    return pa.CompressedInputStream(pa.PythonFile(taken, mode="r"), source.input.compression), taken


def _before_damage(source: Source, position: int) -> bytes:
    """What can still be inflated after `position`: a failed read of a block loses its good part, so go byte by byte."""
    stream, _ = _decompressor(source)
    while position > 0:
        position -= len(stream.read(min(BLOCK, position)))
    rest = bytearray()
    try:
        while byte := stream.read(1):
            rest += byte
    except (pa.ArrowException, OSError):
        if source.failure is not None:
            raise source.failure from None
    return bytes(rest)


def lines(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    """Lines without their newline, and their size with it. Only a newline ends a line (no CR, no U+2028).

    A line whose size is over MAX_ROW_BYTES comes cut. The size of a last line without a newline is its length.
    """
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        first, *rest = piece.split(b"\n")
        if size + len(first) <= MAX_ROW_BYTES:
            held.append(first)
        size += len(first)
        if not rest:
            continue
        yield b"".join(held), size + 1
        last = rest.pop()
        for line in rest:
            yield line, len(line) + 1
        held, size = [last], len(last)
    if size:
        yield b"".join(held), size


def without_return(line: bytes, size: int) -> bytes:
    """Drop the CR of a CRLF line end; a CR elsewhere is content."""
    return line[:-1] if line.endswith(b"\r") and size > len(line) else line
