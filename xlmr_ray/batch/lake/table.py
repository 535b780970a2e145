"""What a table format tells of a table at one version: its files, and what their rows have beside what is in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.ledger.record import File
from xlmr_ray.batch.store.base import Store


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


@dataclass(frozen=True, slots=True)
class PublishedRows:
    """What readers of an output see: the published run, its files by their keys, and the files' schema, None where
    there are none.
    """

    run_id: str
    files: Mapping[str, File]
    schema: pa.Schema | None


class TableSink(ABC):
    """A format in which a table can be committed whose files are those that a run wrote. `extra`: as above."""

    extra: ClassVar[str]

    @abstractmethod
    def check(self, store: Store, target: TableTarget, schemas: Iterable[pa.Schema]) -> None:
        """Raises ImportError where the library is missing, UserError for a column of a type that the format has not,
        and for a table that is not this output's. Nothing is written.
        """

    @abstractmethod
    def commit(self, store: Store, target: TableTarget, published: Callable[[], PublishedRows]) -> str | None:
        """Makes the table consist of the rows that are `published`, in one commit that names their run, or none where
        it does already. Returns the run; None where somebody else committed meanwhile: look again.

        `published` is asked after the table was read, and the commit goes through only upon the version that was read:
        so what was published before another driver's commit never comes after it.

        Raises JobFailed where the table cannot be committed to.
        """

    @abstractmethod
    def names_files(self, store: Store) -> bool:
        """Whether the output has a table of the format, which names its files as they are."""


def unfit(type: pa.DataType) -> pa.DataType | None:
    """What in a type neither Delta nor Iceberg has; their libraries would call unsigned integers signed ones."""
    if pa.types.is_unsigned_integer(type) or type in (pa.float16(), pa.null()):
        return type
    if pa.types.is_time(type) or pa.types.is_duration(type) or pa.types.is_interval(type):
        return type
    if pa.types.is_timestamp(type) and type.unit == "ns":
        return type
    return next((found for i in range(type.num_fields) if (found := unfit(type.field(i).type)) is not None), None)
