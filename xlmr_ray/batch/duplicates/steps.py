"""The steps of a run, each a table that is written once, by whoever is there first: what is there is not done again."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.first_line import first_line

T = TypeVar("T")


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


@dataclass(frozen=True)
class Steps:
    """`folder` ends with `/`."""

    store: Store
    folder: str

    def there(self, kind: str = "") -> set[str]:
        """The names of the steps that are done."""
        start = len(self.folder)
        found = self.store.list(f"{self.folder}{kind}")
        return {entry.key[start:].removesuffix(".parquet") for entry in found if entry.key.endswith(".parquet")}

    def write(self, name: str, table: pa.Table) -> None:
        """Where another launch was faster, its table is the same."""
        with contextlib.suppress(Exists):
            self.store.create(f"{self.folder}{name}.parquet", parquet(table))

    def read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        with self.store.open(f"{self.folder}{name}.parquet") as file:
            return pq.read_table(file, columns=columns, partitioning=None)

    def remove(self) -> None:
        for entry in list(self.store.list(self.folder)):
            self.store.delete(entry.key)


class Each(Protocol):
    """Calls a function with each of the items, in any order, at any number of places."""

    def __call__(self, function: Callable[[T], None], items: Iterable[T]) -> None: ...


def in_turn(function: Callable[[T], None], items: Iterable[T]) -> None:
    for item in items:
        function(item)


def on_ray(function: Callable[[T], None], items: Iterable[T]) -> None:
    """On all machines of the connected cluster, an item a core."""
    task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(call_held)
    held = ray.put(function)
    most = max(2, int(2 * ray.cluster_resources().get("CPU", 1)))
    running: deque[ray.ObjectRef] = deque()
    for item in items:
        if len(running) == most:
            ray.get(running.popleft())
        running.append(task.remote(held, item))
    ray.get(list(running))


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """What is raised on another machine: its UserError as it is, and JobFailed for all else."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise JobFailed(f"a part of the search failed: {first_line(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise JobFailed(f"a part of the search was lost: {first_line(error)}; the same command goes on") from error


def call_held(function: Callable[[T], None], item: T) -> None:
    function(item)
