"""Rows that kill or hang the process that works on them: found by notes that outlive it, one error row each.

Ray restarts an actor that died and gives it the shards that it had. A restarted actor is wary of the first of them: it
notes in the store which it begins. If it dies again, the note tells the next incarnation where, and that shard, or that
piece of it, is cut in pieces, until a row has killed its process twice by itself: it becomes an error row. An actor
that was never restarted notes nothing, so that the normal path costs nothing.

A row that hangs is made to kill its process, by a thread of C that needs no Python lock. Notes are scratch objects
(`.tmp/`), gone with the shard; `sweep` removes those of a job that was stopped.
"""

import contextlib
import faulthandler
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.stages.bisect import by_halves
from xlmr_ray.batch.stages.rows import fail_all
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed

log = logging.getLogger(__name__)

PIECES = 8  # that a range is cut into: fewer deaths than by halves, and each costs a start of the actor
WARY = 4  # shards after a restart; Ray Data gives an actor two at a time
ALONE = 2  # deaths of a process with only this row in it that make it an error row: one may be chance
MOST_DEATHS = 64  # in one shard; over it, rows are not to blame
STANDARD_ERROR = 2
READING = (-1, -1)

Failure = tuple[str, str]  # code and message


@dataclass
class Known:
    """What is known of a shard with deaths: where to cut it, how many there were, how often each row by itself was
    fatal (-1: the reading of the shard), and the rows found to be so, with code and message.
    """

    cuts: list[int] = field(default_factory=list)
    deaths: int = 0
    alone: dict[str, int] = field(default_factory=dict)  # JSON has only string keys
    found: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Note:
    """What an actor leaves to its next incarnation: the rows that it works on, and its shards with deaths."""

    shard: str = ""
    start: int = 0
    stop: int = 0
    shards: dict[str, Known] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Note":
        content = json.loads(data)
        shards = {shard: Known(**known) for shard, known in content.pop("shards").items()}
        return cls(**content, shards=shards)


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of a shard, by index; `failure` if it is a row that is not to be tried again."""

    start: int
    stop: int
    failure: Failure | None = None


class Suspects:
    """The notes of one step of one actor. `actor` is empty where it was never restarted."""

    def __init__(self, store: Store, step: str, *, timeout: float | None, actor: str = "") -> None:
        self.store = store
        self.step = step
        self.timeout = timeout
        self.wary = WARY if actor else 0
        self.key = f".tmp/suspects/{actor}-{step}.json"
        self.late = Path(tempfile.gettempdir(), f"xlmr-ray-{actor}-late")  # where the watch of a wary actor says why
        self.note: Note | None = None  # while it is wary
        self.known: Known | None = None  # of the shard at hand
        self.id = ""

    @contextlib.contextmanager
    def shard(self, id: str) -> Iterator[None]:
        """Around the whole of a shard. Raises JobFailed for one that no cutting helps."""
        self.id = id
        if self.wary and self.note is None:
            self.note = self.recalled()
        self.known = None if self.note is None else self.note.shards.get(id)
        if self.known is not None and self.known.deaths > MOST_DEATHS:
            raise JobFailed(
                f"shard {id}: the process that should {self.step} it died {self.known.deaths} times, in ever smaller "
                "pieces; see the memory of the machine and the logs of Ray; run the job again to go on"
            )
        yield
        if self.note is None:
            return
        self.wary -= 1
        self.note.shards.pop(id, None)
        self.note.shard = ""
        if self.wary and self.note.shards:
            self.store.put(self.key, self.note.to_bytes())
        else:
            self.store.delete(self.key)
        if not self.wary:
            self.note = None

    def recalled(self) -> Note:
        """The note of the incarnation before, with what its death says, or a new one."""
        try:
            note = Note.from_bytes(self.store.get(self.key)[0])
        except FileNotFoundError:
            return Note()
        if not note.shard:
            return note
        known = note.shards.setdefault(note.shard, Known())
        known.deaths += 1
        if note.stop - note.start > 1:
            known.cuts += piece_edges(note.start, note.stop)
            return note
        row = str(note.start)
        known.alone[row] = known.alone.get(row, 0) + 1
        if known.alone[row] >= ALONE:
            known.found[row] = list(
                (codes.TIMED_OUT, f"not done in errors.timeout, {self.timeout:g} seconds, alone in its process")
                if self.was_late()
                else (codes.KILLED_WORKER, f"its process died {ALONE} times with the row alone in it: {self.step}")
            )
        return note

    def pieces(self, count: int) -> list[RowRange]:
        """A shard of so many rows, whole, or as the note says."""
        if self.known is None or count == 0:
            return [RowRange(0, count)]
        pieces = []
        for start, stop in pairwise(sorted({0, count, *self.known.cuts})):
            code = self.known.found.get(str(start)) if stop - start == 1 else None
            pieces.append(RowRange(start, stop, None if code is None else (code[0], code[1])))
        return pieces

    def unreadable(self) -> Failure | None:
        """Why the shard is not to be read again, if its reading was fatal."""
        found = None if self.known is None else self.known.found.get(str(READING[0]))
        return None if found is None else (found[0], found[1])

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of the shard, which the store's own deadlines bound."""
        self.begin(*READING)
        yield

    @contextlib.contextmanager
    def trying(self, piece: RowRange) -> Iterator[None]:
        """Around the work on a piece: noted, and bounded in time."""
        self.begin(piece.start, piece.stop)
        if self.timeout is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            target: int | BinaryIO = STANDARD_ERROR
            if self.note is not None:
                stack.callback(self.late.unlink)
                target = stack.enter_context(self.late.open("wb"))
            faulthandler.dump_traceback_later(self.timeout, exit=True, file=target)
            stack.callback(faulthandler.cancel_dump_traceback_later)
            yield

    def was_late(self) -> bool:
        """Whether the incarnation before was ended by its watch. Of one on another machine that is not known."""
        try:
            traceback = self.late.read_text("utf-8", "replace")
        except FileNotFoundError:
            return False
        log.warning("the process before this one hung: %s", traceback)
        return bool(traceback)

    def begin(self, start: int, stop: int) -> None:
        if self.note is not None:
            self.note.shard, self.note.start, self.note.stop = self.id, start, stop
            self.store.put(self.key, self.note.to_bytes())


def piece_edges(start: int, stop: int) -> list[int]:
    """Where to cut rows [start, stop): ascending, both ends included."""
    count = min(PIECES, stop - start)
    return [start + (stop - start) * i // count for i in range(count + 1)]


def restarted_actor() -> str:
    """The id of this actor if Ray restarted it, else empty."""
    import ray

    if not ray.is_initialized():
        return ""
    context = ray.get_runtime_context()
    id = context.get_actor_id()
    return id if id is not None and context.was_current_actor_reconstructed else ""


T = TypeVar("T")


def in_pieces(work: Callable[[pa.Table], T], rows: pa.Table, code: str, suspects: Suspects) -> list[T]:
    """The results of `work` for the rows: at once where all is well, else in pieces and without the rows that fail."""
    done: list[T] = []
    for piece in suspects.pieces(rows.num_rows):
        part = rows.slice(piece.start, piece.stop - piece.start)
        if piece.failure is not None:
            part = fail_all(part, piece.failure)
        with suspects.trying(piece):
            done += by_halves(work, part, code)
    return done
