"""Requests that are being tokenized, before it is known how many tokens they are: hundreds that come at once would all
find the queue empty, and be refused only when each has been tokenized.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from xlmr_ray.serve.models import Served

# The fewest tokens that so many characters are likely to become: few languages have more characters a token.
CHARACTERS = 6


class Coming:
    """What is on its way to each queue, in tokens guessed from below."""

    def __init__(self) -> None:
        self.guessed: Counter[int] = Counter()
        self.lock = Lock()

    def tokens(self, lane: object) -> int:
        return self.guessed[id(lane)]

    @contextmanager
    def of(self, served: Served, columns: Mapping[str, Sequence[Any]]) -> Iterator[None]:
        """While a request's texts are tokenized."""
        most = served.model.max_length
        texts = (text for column in columns.values() for text in column if isinstance(text, str))
        guess = sum(min(len(text) // CHARACTERS, most) for text in texts)
        lane = id(served.lane)
        with self.lock:
            self.guessed[lane] += guess
        try:
            yield
        finally:
            with self.lock:
                self.guessed[lane] -= guess
                if not self.guessed[lane]:
                    del self.guessed[lane]
