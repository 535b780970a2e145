"""What a table format tells of a table at one version: its files, and what their rows have beside what is in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from xlmr_ray.batch.ledger.record import File


@dataclass(frozen=True, slots=True)
class TableFile:
    """A Parquet file of a table: its URL, or its absolute path on this machine, and the partition values of its rows by
    the columns' names.
    """

    url: str
    partition: Mapping[str, pa.Scalar]


@dataclass(frozen=True)
class TableVersion:
    """A table at a version: the columns that it has then, and its files."""

    version: int
    schema: pa.Schema
    files: Iterator[TableFile]


class TableFormat(ABC):
    """A table format. `name`: what messages call it; `extra`: that of this package which installs its library.

    The library says which files a version has; their rows are read as those of any Parquet file.
    """

    name: ClassVar[str]
    extra: ClassVar[str]

    @abstractmethod
    def is_table(self, fs: Any, where: str) -> bool:
        """Whether a path is that of a table, by what lies there."""

    @abstractmethod
    def read(
        self, url: str, version: int | None, wanted: Sequence[str], options: Mapping[str, object] | None
    ) -> TableVersion:
        """The table at a version, None for the newest; `options` are those of the store's file system.

        Raises ImportError where the library is missing, UserError for a table whose files, read by the names of the
        `wanted` columns, would not give its rows.
        """


class TableSink(TableFormat):
    """A format in which a table can be committed whose files are those that a run wrote."""

    @abstractmethod
    def check(self, schema: pa.Schema) -> None:
        """Raises ImportError where the library is missing, UserError for a column of a type that the format has not."""

    @abstractmethod
    def commit(self, url: str, files: Mapping[str, File], schema: pa.Schema | None, run_id: str) -> bool:
        """Makes the table at `url` consist of these files, by their paths in it, in one commit that names the run.

        Nothing is committed where it does already. Returns False where somebody else committed meanwhile: look again.
        Raises JobFailed where the table cannot be committed to.
        """
