"""Zstandard files of all kinds: of one frame or many, with skippable ones as pzstd writes them, and with the windows of
`zstd --long`, which are larger than Arrow's decompressor allows.

Format: RFC 8878.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

MAX_WINDOW = 1 << 31  # that of `zstd --long=31`, the largest that there is; held in memory
STEP = 1 << 10  # bytes inflated at a time: at most 32 MiB come of them

Read = Callable[[int, int], bytes]  # the file's bytes [start, stop)


class NotZstd(Exception):
    """The stream ends within a frame, or is no stream after `at` bytes of the file."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


def is_skippable(start: bytes) -> bool:
    """Whether bytes are the start of a frame without content."""
    return start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50


def inflated(read: Read, size: int, chunk: int) -> Iterator[bytes]:
    """The content of a file of `size` bytes, `chunk` of them read at a time. Raises NotZstd after what is sound."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame, begun = decompressor.decompressobj(), 0  # where the frame begins
    for at, piece in _pieces(read, 0, size, chunk):
        end = at + len(piece)
        while piece:
            try:
                content = frame.decompress(piece)
            except zstandard.ZstdError as error:
                yield from _frame_before_damage(decompressor, read, begun, max(begun, at), end, chunk)
                raise NotZstd(str(error), at) from None
            yield content
            piece = b""
            if frame.eof:
                piece, begun = frame.unused_data, end - len(frame.unused_data)
                frame = decompressor.decompressobj()
    if begun < size:
        raise NotZstd("it is cut", size)


def _pieces(read: Read, start: int, stop: int, chunk: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of `STEP` bytes, each with where it is."""
    for first in range(start, stop, chunk):
        data = read(first, min(first + chunk, stop))
        for offset in range(0, len(data), STEP):
            yield first + offset, data[offset : offset + STEP]


def _frame_before_damage(
    decompressor: zstandard.ZstdDecompressor, read: Read, begun: int, start: int, stop: int, chunk: int
) -> Iterator[bytes]:
    """What the bytes [start, stop) of a frame give before the damage in them: a failed call loses its good part."""
    frame = decompressor.decompressobj()
    for _, piece in _pieces(read, begun, start, chunk):
        frame.decompress(piece)
    for byte in read(start, stop):
        try:
            yield frame.decompress(bytes([byte]))
        except zstandard.ZstdError:
            return
