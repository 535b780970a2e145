"""Cuts a line format into pieces: the file is read through once, compressed or not, and cut at the ends of records.

A whole compressed file as one shard would have no bound in memory (a 300 MB .json.gz of a web corpus holds over 1 GB),
while a shard of it costs its reader only the decompression up to its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.readers.raw import BadFile, Source, chunks
from xlmr_ray.batch.input.shard import Piece

BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
_OTHERS = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16; expected UTF-8",
    b"\xfe\xff": "UTF-16; expected UTF-8",
}


def checked_content(source: Source) -> Iterator[bytes]:
    """The file's decompressed content. Raises BadFile where it begins as another format does, or is a decompression
    bomb: over `BOMB_BYTES`, and over `BOMB_RATIO` times the file.
    """
    one = source.input
    size = 0
    for block in chunks(source):
        if size == 0:
            for magic, name in _OTHERS.items():
                if block.startswith(magic):
                    raise BadFile(codes.WRONG_FORMAT, f"read as {one.format}, but the content is {name}")
        size += len(block)
        if one.compression and size > BOMB_BYTES and size > BOMB_RATIO * one.size:
            raise BadFile(codes.DECOMPRESSION_BOMB, f"{one.size} bytes inflate to more than {size}")
        yield block


def cut(
    records: Iterator[tuple[bytes, int]],
    *,
    shard_rows: int,
    shard_bytes: int,
    is_blank: Callable[[bytes, int], bool],
    header: Callable[[bytes, int], tuple[str, ...]] | None = None,
    names: tuple[str, ...] = (),
) -> Iterator[Piece]:
    """Pieces of records (content, size with the line end). A blank record is counted and is no row.

    `header` reads the first record that is not blank, which is then no row and not counted; `names` are those of a file
    without one. Gives what is before a damage, then raises BadFile.
    """
    start = position = first_row = number = rows = 0
    try:
        for record, size in records:
            position += size
            blank = is_blank(record, size)
            if header is not None:
                start = position
                if not blank:
                    names, header = header(record, size), None
                continue
            number += 1
            rows += not blank
            if rows == shard_rows or (rows and position - start >= shard_bytes):
                yield Piece(first_row, rows, start, position, names)
                start, first_row, rows = position, number, 0
    except BadFile:
        if rows:
            yield Piece(first_row, rows, start, position, names)
        raise
    if rows:
        yield Piece(first_row, rows, start, position, names)
