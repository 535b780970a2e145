"""`map` with several requests under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


R = TypeVar("R")


REQUESTS = 16  # objects read at a time where many are


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` with a few requests under way, in order, holding no more than those."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * REQUESTS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
