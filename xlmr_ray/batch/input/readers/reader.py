"""What the rest of the package needs to know of an input format: its name and endings, how a file of it is cut into
pieces, and how a piece is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.shard import Piece, Shard
from xlmr_ray.errors import JobFailed
from xlmr_ray.validation import Section

INFLATES = 4  # times a compressed file's size, where it is text


@dataclass(frozen=True)
class Cut:
    """One file, cut: the Arrow types of the kept columns (`Columns.extra`) in it, and its pieces in order."""

    kept: tuple[pa.DataType, ...]
    pieces: Iterator[Piece]


class Reader(Section, ABC):
    """An input format. A subclass's fields are the format's options, in the job file `input.<name>: {option: value}`.

    `name`: what `input.format` says. `endings`: of file names, lower case. `compressed`: whether a whole file may be
    in gzip or zstd. `related`: formats whose files, by their ending, are read as those also where this one is set.
    `typed`: whether kept columns have the types of the file; else they are strings, whatever is in it.
    Rows are counted the same way, in the same order, by `plan` and by `read`, and both are pure: two machines that
    read one file get the same.
    """

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    compressed: ClassVar[bool] = False
    related: ClassVar[tuple[str, ...]] = ()
    typed: ClassVar[bool] = True

    @abstractmethod
    def plan(self, source: Source, columns: Columns, *, shard_rows: int, shard_bytes: int) -> Cut:
        """Cut a file into pieces of at most `shard_rows` rows and about `shard_bytes` bytes in memory. Whatever these
        are, pieces that end with the same row have the same `stop`: so a job can be limited to its first rows.

        Raises BadFile where the file cannot be read; iterating over the pieces raises it after those that can.
        """

    @abstractmethod
    def read(self, source: Source, shard: Shard, columns: Columns, max_row_bytes: int) -> pa.Table:
        """The rows of a shard, good or with an error code; for the columns see `read_shard`."""

    def content_bytes(self, source: Source, columns: Columns) -> int:
        """Bytes in memory of what `plan` would cut, as far as little reading tells. Raises BadFile as `plan` does."""
        return source.input.size * (INFLATES if source.input.compression else 1)

    def unread(self, source: Source, shard: Shard, columns: Columns, code: str, message: str) -> pa.Table:
        """The rows of a shard whose reading kills its process, each with this error code and message.

        Raises JobFailed for a format in which only reading says which positions are rows.
        """
        raise JobFailed(f"{shard.input.key}: shard {shard.id} cannot be read: {message}")
