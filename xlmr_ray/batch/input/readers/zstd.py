"""Zstandard files of odd kinds: those of pzstd, which begin with a skippable frame, and those of `zstd --long`, whose
window is larger than Arrow's decompressor allows.

Format: RFC 8878.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

ARROW_WINDOW = 1 << 27  # the most that zstd's library allows where it is not asked
MAX_WINDOW = 1 << 31  # that of `zstd --long=31`, the largest that there is; held in memory
STEP = 1 << 10  # bytes inflated at a time: at most 32 MiB come of them
HEADER = 18

Read = Callable[[int, int], bytes]  # the file's bytes [start, stop)


class NotZstd(Exception):
    """The stream ends within a frame, or is no stream after `at` bytes of the file."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


def is_skippable(start: bytes) -> bool:
    """Whether bytes are the start of a frame without content."""
    return start[1:4] == b"\x2a\x4d\x18" and start[0] & 0xF0 == 0x50


def needs_large_window(start: bytes, read: Read) -> bool:
    """Whether the first frame with content has a window that is too large for Arrow. `start`: the file's first `HEADER`
    bytes.
    """
    position = 0
    while is_skippable(start):
        if len(start) < 8:
            return False
        position += 8 + int.from_bytes(start[4:8], "little")
        start = read(position, position + HEADER)
    try:
        return bool(zstandard.get_frame_parameters(start).window_size > ARROW_WINDOW)
    except zstandard.ZstdError:
        return False  # Arrow will say what is wrong


def large_window(read: Read, size: int, chunk: int) -> Iterator[bytes]:
    """The content of a file of `size` bytes, `chunk` of them read at a time. Raises NotZstd after what is sound."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame = decompressor.decompressobj()
    begun = False  # whether there is something of a frame that has not ended
    at = 0
    try:
        for start in range(0, size, chunk):
            data = read(start, min(start + chunk, size))
            for offset in range(0, len(data), STEP):
                piece = data[offset : offset + STEP]
                at = start + offset
                while piece:
                    begun = True
                    yield frame.decompress(piece)
                    piece = b""
                    if frame.eof:
                        piece, begun = frame.unused_data, False
                        frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise NotZstd(str(error), at) from None
    if begun:
        raise NotZstd("it is cut", size)
