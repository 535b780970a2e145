"""Who may wait: a request is refused (429) where its tokens would wait too long behind those of others.

It is asked twice: when its tokens are counted, and before that, since hundreds that come at once would all find the
queue empty, and be refused only when each has been tokenized.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from xlmr_ray.serve.models import Served
from xlmr_ray.serve.queue.base import RequestQueue
from xlmr_ray.serve.requests import Overloaded, TooLarge
from xlmr_ray.serve.settings import LimitsSection

# Of `queue_tokens: auto`, at least.
QUEUED_BATCHES = 32
# The fewest tokens that so many characters are likely to become: few languages have more characters a token.
CHARACTERS = 6


def check_tokens(queue: RequestQueue, tokens: int, limits: LimitsSection) -> None:
    """Raises TooLarge for more tokens than a request may have, or than can be computed in its time."""
    most = limits.request_tokens
    if queue.full_rate and tokens > queue.max_tokens:
        most = min(most, max(queue.max_tokens, int(queue.full_rate * limits.request_s)))
    if tokens > most:
        raise TooLarge(
            f"the request has {tokens} tokens to compute, at most {most} are allowed; send fewer or shorter texts"
        )


def admit(queue: RequestQueue, tokens: int, limits: LimitsSection, *, tokenizing: int = 0) -> None:
    """Raises Overloaded where so many `tokens` would wait too long, behind those that wait and those of requests that
    are being tokenized; an empty queue takes any request.
    """
    if limits.queue_tokens == "auto":
        limit = max(QUEUED_BATCHES * queue.max_tokens, int(queue.rate * limits.request_s / 3))
    else:
        limit = limits.queue_tokens
    backlog = queue.backlog + tokenizing
    if backlog and backlog + tokens > limit:
        seconds = backlog / queue.rate if queue.rate else 1.0
        raise Overloaded(
            f"{backlog} tokens wait already, at most {limit} may; try again later", max(1, math.ceil(seconds))
        )


class Tokenizing:
    """Requests that are being tokenized, by their queue, in tokens guessed from below."""

    def __init__(self) -> None:
        self.guessed: Counter[int] = Counter()
        self.lock = Lock()

    def tokens(self, queue: RequestQueue) -> int:
        return self.guessed[id(queue)]

    @contextmanager
    def of(self, served: Served, columns: Mapping[str, Sequence[Any]]) -> Iterator[None]:
        """While a request's texts are tokenized."""
        most = served.model.max_length
        texts = (text for column in columns.values() for text in column if isinstance(text, str))
        guess = sum(min(len(text) // CHARACTERS, most) for text in texts)
        queue = id(served.queue)
        with self.lock:
            self.guessed[queue] += guess
        try:
            yield
        finally:
            with self.lock:
                self.guessed[queue] -= guess
                if not self.guessed[queue]:
                    del self.guessed[queue]
