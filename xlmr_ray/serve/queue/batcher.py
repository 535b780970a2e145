"""Requests that wait for one engine, and the thread that computes them: whenever the engine is free it takes what fits
in its token budget. No timer, and no batch that is closed before it starts.

Fair by tokens (start-time fair queueing, Goyal, Vin and Cheng 1996): the next sequence is of the request that has had
the fewest tokens since it came, and a new one starts level with the one that is served. So a short request waits for a
batch or two and not for all of a long one, and the long one is never passed over for good.
"""

import asyncio
import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xlmr_ray.engine.batching import longest_first
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.joint_batch import CallerSequences, compute_together
from xlmr_ray.engine.memory import attempt, free
from xlmr_ray.engine.repeats import Repeats
from xlmr_ray.engine.result_cache import ResultCache, keys_of
from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.serve.logs import log_failure
from xlmr_ray.serve.queue.base import Computed, Door, smoothed
from xlmr_ray.serve.requests import CURRENT, BackendFailed, ServiceError, TimedOut, Unavailable
from xlmr_ray.tasks.encoded import ragged, targets_of
from xlmr_ray.tasks.task import EncoderTask, Task

log = logging.getLogger(__name__)

# Behind the first sequence that does not fit, so many are looked at for some that do.
LOOK_AHEAD = 64
# Requests for which nobody waits are computed when no other has come or been computed for `IDLE_S` seconds; in batches
# of a quarter as many tokens as long as one has in the last `BUSY_S`, which then waits for a short time only.
IDLE_S = 0.05
BUSY_S = 10.0


@dataclass(frozen=True)
class BatchStats:
    """One batch: its sequences, their tokens, tokens computed beyond them, requests in it, the wall clock's seconds."""

    sequences: int
    tokens: int
    padded: int
    requests: int
    seconds: float


@dataclass(eq=False)
class Ticket:
    """A request's N sequences for one task object on the engine's head number `head`: flat `ids (T)`, `splits
    (N + 1)`, `targets (T)` where the task has any. `deadline` is of `time.monotonic()`; nobody waits for it in the
    `background`.

    `raw (R, ...)` fills up as its sequences are computed; `done` is then set in its own event loop. Results are kept by
    the `keys (N)` of the sequences, where there are any, and `known` is how many were taken.
    """

    task: EncoderTask
    head: int
    ids: NDArray[np.int32]
    splits: NDArray[np.int64]
    targets: NDArray[np.int32] | None
    deadline: float | None
    background: bool = False
    keys: list[bytes] | None = None
    known: int = 0
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started: float = 0.0
    ended: float = 0.0
    over: bool = False
    raw: NDArray[np.float32] | None = None
    rows: ResultRows = field(init=False)
    lengths: list[int] = field(init=False)
    left: deque[int] = field(init=False)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = ResultRows.of(self.task.unit, self.splits, self.targets)
        sizes = np.diff(self.splits)
        self.lengths = sizes.tolist()
        self.left = deque(longest_first(sizes).tolist())
        self.missing = len(self.left)

    @property
    def waiting(self) -> int:
        """Tokens that are not taken yet."""
        return sum(self.lengths[sequence] for sequence in self.left)

    def give(self, sequences: list[int], values: NDArray[np.float32]) -> None:
        """Results `(R, ...)` of some sequences."""
        if self.raw is None:
            self.raw = np.empty((self.rows.total, *values.shape[1:]), np.float32)
        if len(sequences) == 1:
            self.raw[self.rows.splits[sequences[0]] : self.rows.splits[sequences[0] + 1]] = values
        else:
            self.raw[self.rows.rows(np.array(sequences, np.int64))[0]] = values
        self.missing -= len(sequences)


@dataclass(frozen=True)
class Share:
    """Sequences of one ticket that are in a batch together."""

    ticket: Ticket
    sequences: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.ticket.lengths[sequence] for sequence in self.sequences)

    @property
    def sequences_of(self) -> CallerSequences:
        ticket = self.ticket
        spans = [slice(ticket.splits[i], ticket.splits[i + 1]) for i in self.sequences]
        return CallerSequences(
            task=ticket.task,
            head=ticket.head,
            ids=np.concatenate([ticket.ids[span] for span in spans]),
            lengths=np.array([ticket.lengths[i] for i in self.sequences], np.int64),
            targets=None if ticket.targets is None else np.concatenate([ticket.targets[span] for span in spans]),
        )


class Batcher:
    """The queue of one engine. `submit` may be called from any event loop; `run` is the engine's own thread."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        observe: Callable[[BatchStats], None],
        cache: ResultCache[Any] | None = None,
    ) -> None:
        self.engine, self.name, self.observe, self.cache = engine, name, observe, cache
        self.changed = threading.Condition()
        self.door = Door(self.changed)
        self.heap: list[tuple[float, int, Ticket]] = []
        self.numbers = count()
        self.clock = 0.0  # the tag of the sequence that was taken last
        self.tokens = 0  # of sequences that somebody waits for
        self.asked = -math.inf  # when such a one came, or was computed, last
        self.computing: tuple[float, int] | None = None  # since when, how many tokens
        self.rate = 0.0  # tokens a second, of the last batches
        self.full_rate = 0.0  # of the last ones that were at least half full
        self.broken: str | None = None
        self.thread = threading.Thread(target=self.run, name=f"engine-{name}", daemon=True)
        self.thread.start()

    @property
    def max_tokens(self) -> int:
        return self.engine.max_tokens

    async def process(
        self, task: Task, index: int, encoded: pa.Table, deadline: float | None, name: bytes = b""
    ) -> Computed:
        """As `RequestQueue` says."""
        computed = cast(EncoderTask, task)
        ids, splits = ragged(encoded["input_ids"])
        targets = targets_of(encoded)
        flat = None if targets is None else ragged(targets)[0]
        context = CURRENT.get()
        repeats = Repeats.of(ids, splits, flat)
        ids, splits, flat = repeats.distinct(ids, splits, flat)
        background = context is not None and context.background
        keys = None if self.cache is None else keys_of(name, ids, splits, flat, range(len(splits) - 1))
        ticket = Ticket(computed, index, ids, splits, flat, deadline, background, keys)
        raw = await self.submit(ticket)

        def finish() -> pa.Table:
            return computed.postprocess(repeats.spread(raw, ticket.rows), encoded)

        return Computed(finish, ticket.started, ticket.ended, len(repeats.again), ticket.known)

    async def submit(self, ticket: Ticket) -> NDArray[np.float32]:
        """The ticket's results `(R, ...)`. Raises TimedOut past its deadline, BackendFailed where the model has no
        result. When the caller is cancelled, what is not taken yet is never computed.
        """
        with self.changed:
            if self.broken:
                raise Unavailable("the engine has stopped")
            if self.all_known(ticket):
                assert ticket.raw is not None
                return ticket.raw
            # Behind all others: infinity stays so, whatever has been taken of the ticket.
            tag = math.inf if ticket.background else self.clock
            heapq.heappush(self.heap, (tag, next(self.numbers), ticket))
            if not ticket.background:
                self.tokens += ticket.waiting
                self.asked = time.monotonic()
            self.changed.notify()
        try:
            timeout = None if ticket.deadline is None else ticket.deadline - time.monotonic()
            await asyncio.wait_for(ticket.done, timeout)
        except TimeoutError:
            raise TimedOut("the request's time was over before it was computed") from None
        finally:
            with self.changed:
                ticket.over = True
                self.tokens -= 0 if ticket.background else ticket.waiting
                ticket.left.clear()
        assert ticket.raw is not None
        return ticket.raw

    @property
    def requests(self) -> int:
        """How many wait for some of their sequences to be taken."""
        with self.changed:
            return sum(1 for _, _, ticket in self.heap if not ticket.over and not ticket.background)

    @property
    def backlog(self) -> int:
        """Tokens that wait or are computed now."""
        now = self.computing
        return self.tokens + (now[1] if now else 0)

    def trouble(self, limit: float) -> str | None:
        """Why it computes nothing any more: a forward pass that takes more than `limit` seconds, or what broke."""
        now = self.computing
        if self.broken:
            return f"engine {self.name}: {self.broken}"
        if now is not None and (seconds := time.monotonic() - now[0]) > limit:
            return f"engine {self.name}: a forward pass has taken {seconds:.0f} s"
        return None if self.thread.is_alive() or self.door.shut else f"engine {self.name}: its thread has ended"

    def run(self) -> None:
        while batch := self.next_batch():
            self.compute(batch)
            self.computing = None
            if any(not share.ticket.background for share in batch):
                self.asked = time.monotonic()

    def next_batch(self) -> list[Share]:
        """Waits for one; none when it is closed and nothing waits."""
        with self.changed:
            while not (batch := self.take()):
                if self.door.done():
                    return []
                self.changed.wait(IDLE_S if self.heap else None)
            self.computing = (time.monotonic(), sum(share.tokens for share in batch))
            return batch

    def all_known(self, ticket: Ticket) -> bool:
        """Gives a new ticket the results that were kept of its sequences, which then wait no more; whether of all."""
        if ticket.keys is not None:
            ticket.left = deque(one for one in ticket.left if not self.known(ticket, one))
        if not ticket.missing:
            ticket.started = ticket.ended = time.monotonic()
        return not ticket.missing

    def known(self, ticket: Ticket, sequence: int) -> bool:
        """Whether the result of a sequence was kept, which the ticket then has."""
        kept = None
        if self.cache is not None and ticket.keys is not None:
            kept = self.cache.find(ticket.keys[sequence])
        if kept is None:
            return False
        ticket.give([sequence], kept)
        ticket.known += 1
        return True

    def keep(self, share: Share, values: NDArray[np.float32]) -> None:
        """Keeps a share's results `(R, ...)`, each for its sequence."""
        if self.cache is None or share.ticket.keys is None:
            return
        splits = share.ticket.rows.splits
        ends = np.cumsum([splits[i + 1] - splits[i] for i in share.sequences])
        for sequence, own in zip(share.sequences, np.split(values, ends[:-1]), strict=True):
            self.cache.keep(share.ticket.keys[sequence], own.copy(), own.nbytes)

    def take(self) -> list[Share]:
        """Sequences that fit in the token budget, one at least where any waits; those of requests that are over are
        dropped. One that another request's in the batch is equal to waits for the next, which finds its result where
        results are kept. The lock is held.
        """
        now, room = time.monotonic(), self.engine.max_tokens
        taken: dict[Ticket, list[int]] = {}
        keys: set[bytes] = set()
        passed: list[tuple[float, int, Ticket]] = []
        while self.heap and room > 0 and len(passed) < LOOK_AHEAD:
            entry = tag, number, ticket = heapq.heappop(self.heap)
            if ticket.background and not ticket.over:
                if (now - self.asked < IDLE_S) or any(not one.background for one in taken):
                    passed.append(entry)
                    break
                if not taken and now - self.asked < BUSY_S:
                    room = -(-room // 4)
            if ticket.over or (ticket.deadline is not None and now > ticket.deadline):
                continue
            length = ticket.lengths[ticket.left[0]]
            key = None if ticket.keys is None else ticket.keys[ticket.left[0]]
            if taken and (length > room or key in keys):
                passed.append(entry)
                continue
            if self.known(ticket, ticket.left[0]):
                ticket.left.popleft()
                ticket.started = ticket.started or now
                self.tokens -= 0 if ticket.background else length
                if ticket.left:
                    heapq.heappush(self.heap, entry)
                elif not ticket.missing:
                    self.tell([(ticket, None)])
                continue
            if key is not None:
                keys.add(key)
            taken.setdefault(ticket, []).append(ticket.left.popleft())
            ticket.started = ticket.started or now
            room -= length
            if not ticket.background:
                self.tokens -= length
                self.clock = max(self.clock, tag)
                self.asked = now
            if ticket.left:
                heapq.heappush(self.heap, (tag + length, number, ticket))
        for entry in passed:
            heapq.heappush(self.heap, entry)
        return [Share(ticket, sequences) for ticket, sequences in taken.items()]

    def compute(self, shares: Sequence[Share]) -> None:
        """Results, or what went wrong, to the tickets. Never raises."""
        tokens = sum(share.tokens for share in shares)
        if tokens > self.engine.max_tokens and len(pieces := halves(shares)) > 1:
            for piece in pieces:  # the budget was cut since these were taken
                self.compute(piece)
            return
        stats, began = self.engine.stats, time.monotonic()
        padded = stats.padded
        results: list[NDArray[np.float32]] | None = None
        apart = False
        try:
            results = attempt(partial(compute_together, self.engine, [share.sequences_of for share in shares]))
        except Exception as error:
            apart = len(shares) > 1 and not isinstance(error, torch.AcceleratorError)
            if not apart:
                self.fail(shares, error)
                return
        # From here on the error is gone, and with it the tensors of the batch that failed.
        if apart:  # so that one request does not fail others
            for share in shares:
                self.compute([share])
            return
        if results is None:
            self.compute_smaller(shares)
            return
        seconds = time.monotonic() - began
        self.rate = smoothed(self.rate, tokens / seconds)
        if 2 * tokens >= self.engine.max_tokens:
            self.full_rate = smoothed(self.full_rate, tokens / seconds)
        sequences = sum(len(share.sequences) for share in shares)
        self.observe(BatchStats(sequences, tokens, stats.padded - padded, len(shares), seconds))
        ended: list[tuple[Ticket, ServiceError | None]] = []
        for share, values in zip(shares, results, strict=True):
            ticket = share.ticket
            ticket.give(share.sequences, values)
            if not np.isfinite(values).all():
                ended.append((ticket, BackendFailed("the model's result holds NaN or infinity")))
                continue
            self.keep(share, values)
            if not ticket.missing:
                ended.append((ticket, None))
        self.tell(ended)

    def compute_smaller(self, shares: Sequence[Share]) -> None:
        """In two batches what did not fit in memory."""
        tokens, pieces = sum(share.tokens for share in shares), halves(shares)
        if not pieces:
            free(self.engine.device)
            self.tell([(shares[0].ticket, BackendFailed(f"{tokens} tokens do not fit in the engine's memory"))])
            return
        self.engine.shrink(tokens)
        for piece in pieces:
            self.compute(piece)

    def fail(self, shares: Sequence[Share], error: Exception) -> None:
        """Tells the tickets; all that wait, too, where the device's context is lost and only a new process helps."""
        if isinstance(error, torch.AcceleratorError):
            self.broken = f"the device failed: {type(error).__name__}"
        log_failure(log, f"engine {self.name}", error)
        ended: list[tuple[Ticket, ServiceError | None]] = [
            (share.ticket, BackendFailed("the model failed on this request")) for share in shares
        ]
        if self.broken:
            with self.changed:
                ended += [(ticket, Unavailable("the engine has stopped")) for _, _, ticket in self.heap]
        self.tell(ended)

    def tell(self, ended: Sequence[tuple[Ticket, ServiceError | None]]) -> None:
        """Wakes those who wait for the tickets, one call for each event loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, ServiceError | None]]] = {}
        now = time.monotonic()
        for ticket, error in ended:
            ticket.ended = now
            loops.setdefault(ticket.done.get_loop(), []).append((ticket, error))
        for loop, own in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle_tickets, own)


def settle_tickets(ended: Sequence[tuple[Ticket, ServiceError | None]]) -> None:
    for ticket, error in ended:
        if ticket.done.done():
            continue  # cancelled, or past its deadline
        if error is None:
            ticket.done.set_result(None)
        else:
            ticket.done.set_exception(error)


def halves(shares: Sequence[Share]) -> list[list[Share]]:
    """The sequences in two batches; () where there is only one."""
    each = [(share.ticket, sequence) for share in shares for sequence in share.sequences]
    out: list[list[Share]] = []
    for part in (each[: len(each) // 2], each[len(each) // 2 :]) if len(each) > 1 else ():
        own: dict[Ticket, list[int]] = {}
        for ticket, sequence in part:
            own.setdefault(ticket, []).append(sequence)
        out.append([Share(ticket, sequences) for ticket, sequences in own.items()])
    return out
