"""Cuts inputs into shards: the fixed pieces that are read, scored, written and committed whole.

Every shard's rows are counted in the plan, so progress, commit records and `verify` know them. How a file is cut is its
reader's business. A file is planned by itself (`plan_input`), so planning spreads over threads or machines.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile, check_unchanged
from xlmr_ray.batch.input.kept_types import KeptTypes
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.raw import BadFile, Source
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.errors import UserError

SHARD_BYTES = 32 << 20  # Ray Data may split a block over 128 MiB, and a shard is one block


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A file, or the rest of it after its readable rows, that is not read, and why. `code`: a file code of `codes`.

    `rows`: how many rows are lost with it, None where nothing in the file tells; `estimated`: they were not counted.
    """

    key: str
    code: str
    message: str
    rows: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """One input's shards in order, the dead letter if it has one, and the Arrow types of its kept columns."""

    shards: tuple[Shard, ...]
    dead: DeadLetter | None
    kept: tuple[pa.DataType, ...]


class Planning(Protocol):
    """A file that is being planned."""

    def result(self) -> Planned: ...

    def cancel(self) -> object: ...


class Submit(Protocol):
    """What plans files, a function call each."""

    def submit(self, plan: Callable[..., Planned], /, *arguments: Any, **options: Any) -> Planning: ...


class Pool(Submit, Protocol):
    """The same elsewhere: with so many files `under_way` it is busy."""

    under_way: int


def plan_shards(
    inputs: Iterable[InputFile],
    *,
    shard_rows: int,
    columns: Columns,
    shard_bytes: int = SHARD_BYTES,
    workers: int = 8,
    pool: Pool | None = None,
    readers: Mapping[str, Reader] = READERS,
    options: Mapping[str, object] | None = None,
    kept: KeptTypes | None = None,
    limit: int | None = None,
    first: int = 0,
    start: Callable[[], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Shard | DeadLetter]:
    """Plan all inputs in order, with so many threads or in a `pool`; no more than twice as many plans are held.

    `kept` gets the types of the kept columns of every file. `limit`: only the first so many rows; what comes after them
    is not read. `first`: the index of the first of these inputs in the list that the shards' ids speak of. `start`: a
    thread's first call; `stop`: whether threads are to give up, by CancelledError.

    Raises UserError where the types of two files do not go together, InputChanged where an object is not the listed
    one; errors of the store propagate.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows is {shard_rows}; expected at least 1")
    left = sys.maxsize if limit is None else limit
    plan = partial(
        plan_input, shard_rows=shard_rows, columns=columns, shard_bytes=shard_bytes, readers=readers, options=options
    )
    with contextlib.ExitStack() as stack:
        most = 2 * workers if pool is None else pool.under_way
        planners: Submit | None = pool
        if planners is None:
            planners = stack.enter_context(ThreadPoolExecutor(workers, initializer=start))
            # Whoever stops in the middle does not wait for the rest of large files.
            left_off = threading.Event()
            stack.callback(left_off.set)
            plan = partial(plan, stop=lambda: left_off.is_set() or stop())
        numbered = enumerate(inputs, first)
        running: deque[tuple[InputFile, Planning]] = deque()
        try:
            while left:
                if stop():
                    raise CancelledError
                for index, one in itertools.islice(numbered, most - len(running)):
                    running.append((one, planners.submit(plan, one, index, limit=left)))
                if not running:
                    return
                one, job = running.popleft()
                planned = job.result()
                if kept is not None and planned.kept:
                    kept.add(one.key, planned.kept)
                before = 0
                for shard in planned.shards:
                    if shard.rows > left:
                        shard = _first_rows(shard, left, before, readers[one.format], columns, options)
                    yield shard
                    before, left = before + shard.rows, left - shard.rows
                    if not left:
                        return
                if planned.dead:
                    yield planned.dead
        finally:
            for _, job in running:
                job.cancel()


def step_back() -> None:
    """Lets all others go before this thread, where the system has a priority for a thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def plan_input(
    one: InputFile,
    index: int,
    *,
    shard_rows: int,
    columns: Columns,
    shard_bytes: int = SHARD_BYTES,
    readers: Mapping[str, Reader] = READERS,
    options: Mapping[str, object] | None = None,
    limit: int = sys.maxsize,
    stop: Callable[[], bool] = lambda: False,
) -> Planned:
    """Plan the input at `index` of the sorted list. Shards hold at most `shard_rows` rows and about `shard_bytes`;
    there are as many as hold `limit` rows. Raises CancelledError when it is to `stop`.
    """
    source = Source(one, options)
    shards: list[Shard] = []
    dead: DeadLetter | None = None
    kept: tuple[pa.DataType, ...] = ()
    rows = 0
    try:
        if (info := source.info()) is None:
            raise BadFile(codes.FILE_GONE, "deleted after it was listed, or a link to nothing")
        if one.size == 0:
            raise BadFile(codes.EMPTY_FILE, "zero bytes")
        check_unchanged(one, info)
        cut = readers[one.format].plan(source, columns, shard_rows=shard_rows, shard_bytes=shard_bytes)
        kept = cut.kept
        for piece in cut.pieces:  # those before a damage are kept
            if one.compression:
                piece = piece._replace(lead=piece.start)
            shards.append(Shard(f"{index:07d}-{len(shards):06d}", one, *piece))
            rows += piece.rows
            if rows >= limit:
                break
            if stop():
                raise CancelledError
    except FileNotFoundError:
        return Planned((), DeadLetter(one.key, codes.FILE_GONE, f"{one.key}: deleted while it was planned"), ())
    except BadFile as error:
        if error.code == codes.DECOMPRESSION_BOMB:
            shards, rows = [], 0
        partly = f" (the {rows} rows before it are read)" if rows and error.at else ""
        dead = DeadLetter(one.key, error.code, f"{one.key}: {error.message}{partly}", *_lost(one, error, rows))
    return Planned(tuple(shards), dead, kept)


def _lost(one: InputFile, error: BadFile, read: int) -> tuple[int | None, bool]:
    """How many rows are lost, and whether that is an estimate. None where nothing in the file tells.

    After a damage in a file of which rows were `read`, as many to a byte as before it.
    """
    if error.rows is not None:
        return error.rows, error.estimated
    if not read or not error.at:
        return None, True
    return max(1, round(read * (one.size - error.at) / error.at)), True


def _first_rows(
    shard: Shard, rows: int, before: int, reader: Reader, columns: Columns, options: Mapping[str, object] | None
) -> Shard:
    """The shard with only its first `rows` rows; `before` are in the file's shards before it. It ends where the reader,
    asked for pieces of one row, ends the last of them.

    Raises UserError for a reader that does not cut after each row.
    """
    source = Source(shard.input, options)
    pieces = reader.plan(source, columns, shard_rows=1, shard_bytes=SHARD_BYTES).pieces
    stop, count = shard.start, 0
    while count < before + rows:
        piece = next(pieces)
        stop, count = piece.stop, count + piece.rows
    if count > before + rows:
        raise UserError(
            f"input.limit: {shard.input.key}: files of format {shard.input.format} are not cut after any row; "
            "leave the limit out"
        )
    source.check()
    return replace(shard, rows=rows, stop=stop)
