"""`map` with several requests under way."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


R = TypeVar("R")


REQUESTS = 16  # objects read at a time where many are
MOST = 32  # items that a thread takes at a time


def in_order(
    function: Callable[[T], R], items: Iterable[T], *, requests: int = REQUESTS, most: int | None = None
) -> Iterator[R]:
    """`map` with a few `requests` under way, in order, holding no more than those and some that are answered. Of very
    many items a thread takes up to `most`, or `MOST`, at a time.
    """

    def each(some: list[T]) -> list[R]:
        return [function(item) for item in some]

    items = iter(items)
    with ThreadPoolExecutor(requests) as pool:
        waiting: deque[Future[list[R]]] = deque()
        try:
            # Of very many a thread takes several at a time: handing them out costs as much as a local file.
            for number in itertools.count():
                if not (some := list(itertools.islice(items, min(1 + number // (4 * requests), most or MOST)))):
                    break
                waiting.append(pool.submit(each, some))
                if len(waiting) >= 2 * requests:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
