"""What the queues of engines and of generators have in common. A queue that is closed goes on until the last request
has left, and then its thread ends.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from xlmr_ray.tasks.task import Task


@dataclass(frozen=True)
class Computed:
    """A request that was computed. `finish` makes the task's output table, on any thread; `started` and `ended` are of
    `time.monotonic()`, in seconds. Of its sequences, `repeated` were equal to another one of it, and the results of
    `known` others had been kept.
    """

    finish: Callable[[], pa.Table]
    started: float
    ended: float
    repeated: int = 0
    known: int = 0


class RequestQueue(Protocol):
    """Requests that wait for one model, and the thread that computes them."""

    name: str
    door: "Door"
    rate: float  # tokens a second, of the last batches
    full_rate: float  # of the last ones that were at least half full; 0 where none was

    @property
    def max_tokens(self) -> int:
        """Tokens of a batch."""

    @property
    def requests(self) -> int:
        """How many wait."""

    @property
    def backlog(self) -> int:
        """Tokens that wait or are computed now."""

    def trouble(self, limit: float) -> str | None:
        """Why it computes nothing any more: what takes more than `limit` seconds, or what broke."""

    async def process(
        self, task: Task, index: int, encoded: pa.Table, deadline: float | None, name: bytes = b""
    ) -> Computed:
        """An encoded table for the task at this index of the model's tasks; `name` stands for all but the table that
        decides the results, where these are kept. Raises TimedOut past the deadline,
        BackendFailed where a document has no output. When the caller is cancelled, what has not begun never does.
        """


class Door:
    """Of a queue whose thread waits for `changed`. A request enters before it begins and leaves when it has ended."""

    def __init__(self, changed: threading.Condition) -> None:
        self.changed = changed
        self.users = 0
        self.closing = self.shut = False

    def enter(self) -> bool:
        """False where the queue has ended: another one has taken its place."""
        with self.changed:
            self.users += not self.shut
            return not self.shut

    def leave(self) -> None:
        with self.changed:
            self.users -= 1
            self.changed.notify()

    def close(self) -> None:
        """The thread ends once nobody is in."""
        with self.changed:
            self.closing = True
            self.changed.notify()

    def done(self) -> bool:
        """Whether the thread is to end now, which shuts the door. The lock is held, and nothing waits."""
        self.shut = self.closing and not self.users
        return self.shut


def smoothed(rate: float, last: float) -> float:
    """The rate of the last batches, after another one."""
    return last if not rate else 0.8 * rate + 0.2 * last
