"""Calls of a function as tasks of the Ray cluster that is there."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError

T = TypeVar("T")
R = TypeVar("R")

MOST = 1000  # calls under way


@dataclass(frozen=True)
class Call(Generic[R]):
    """What a worker does, and how it is done `here` instead."""

    answer: ray.ObjectRef
    here: Callable[[], R]

    def result(self) -> R:
        """Where the worker failed, it is done here: what that raises is as if there were no workers."""
        with contextlib.suppress(RayError):
            found: R = ray.get(self.answer)
            return found
        return self.here()

    def cancel(self) -> None:
        ray.cancel(self.answer)


class Workers:
    """The cluster's, a call a task. `beside` actors that have all of its CPUs there are fewer, which need not wait for
    one.
    """

    def __init__(self, *, beside: bool = False) -> None:
        cpus = ray.cluster_resources().get("CPU", 0)
        self.under_way = max(8, min(MOST, int(cpus / 2 if beside else 2 * cpus)))
        self._task = ray.remote(num_cpus=0 if beside else 1, scheduling_strategy="SPREAD")(_call)

    def submit(self, function: Callable[..., R], *arguments: Any, **options: Any) -> Call[R]:
        return Call(self._task.remote(function, arguments, options), lambda: function(*arguments, **options))


def _call(function: Callable[..., R], arguments: tuple[Any, ...], options: dict[str, Any]) -> R:
    return function(*arguments, **options)


def mapped(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` by the workers of the cluster that is there, in order; by this process where there is none."""
    if not ray.is_initialized():
        yield from map(function, items)
        return
    workers, items = Workers(), iter(items)
    running: deque[Call[R]] = deque()
    try:
        while True:
            for item in itertools.islice(items, workers.under_way - len(running)):
                running.append(workers.submit(function, item))
            if not running:
                return
            yield running.popleft().result()
    finally:
        for call in running:
            call.cancel()
