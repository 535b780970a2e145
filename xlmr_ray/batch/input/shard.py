"""A shard: the fixed piece of an input that is read, scored, written and committed whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xlmr_ray.batch.input.file import InputFile


class Piece(NamedTuple):
    """Rows of one file, as its reader cuts it.

    `first_row` is the position of the first row in the file, from 0, `rows` how many rows there are. What `start` and
    `stop` mean is up to the reader: bytes [start, stop) of the decompressed content for line formats, rows [start,
    stop) for Parquet. `header`: names that the reader found at the start of the file and needs for every piece.
    `lead`: how far before `start` a reader has to begin to get there, as in a compressed file; 0 where it need not.
    """

    first_row: int
    rows: int
    start: int
    stop: int
    header: tuple[str, ...] = ()
    lead: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of an input. `id` depends only on the input's index in the list and the piece's index in the input."""

    id: str
    input: InputFile
    first_row: int
    rows: int
    start: int
    stop: int
    header: tuple[str, ...] = ()
    lead: int = 0

    def goes_on(self, last: Shard) -> bool:
        """Whether who has just read `last`, of the same plan, reads on, while others would read much of it again."""
        return self.lead > 0 and last.input == self.input and self.start - self.lead <= last.start <= self.start
