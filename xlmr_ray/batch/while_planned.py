"""Scoring while the plan is made: of many files that are read through to be planned, the first rows come soon.

Threads or workers plan, and each part of the plan goes, once it is in the store, over an actor to the tokenizers. What
is not done when all is planned is left to the launch's ordinary way, which counts on records only.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from itertools import chain
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle, ActorMethod
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from xlmr_ray.batch.cluster import connected
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import ShardTable
from xlmr_ray.batch.ledger.parts import Part
from xlmr_ray.batch.ledger.record import committed_shards
from xlmr_ray.batch.observe.telemetry import Watch
from xlmr_ray.batch.plan import Plan, Unplanned
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.ranges import known_ranges
from xlmr_ray.batch.score import Run, begin, follow_rows
from xlmr_ray.batch.stages.packs import packs_for
from xlmr_ray.batch.stream import rows_of, set_up_ray_data, stream_packs
from xlmr_ray.text.progress_line import ProgressLine

LOOK = 0.1  # seconds between two looks for the next pack


def score_while_planned(run: Run, unplanned: Unplanned, check: Callable[[], None], watch: Watch) -> Plan:
    """The run's plan, when it is whole and what came of it is committed. Where it is soon whole, nothing is scored."""
    inputs = unplanned.inputs
    totals = Totals(unplanned, run.figures, frozenset(committed_shards(run.store, run.plan.run_id)))
    with planner(unplanned) as (parts, whole):
        first = ShardTable(inputs)
        while not len(first):
            part = parts.get()
            if part is None or part.until == len(inputs):
                return whole.result()
            for shard in totals.left(part):
                first.add(shard)
        with connected(run.job.cluster.address), ProgressLine(run.console, "docs", quiet=run.quiet) as line:
            recipe = known_ranges(run.prepared.recipe, None)
            more = run.figures.total_shards - len(first)
            recipe, size = begin(run, recipe, first, np.arange(len(first)), line, watch, more=more)
            todo = chain([first], map(totals.left, iter(parts.get, None)))

            def still_good() -> None:
                check()
                if whole.done():
                    run.with_plan(whole.result()).check_errors()

            with (
                filled_shelf(todo, size.grown(size.tokenizers)) as shelf,
                contextlib.closing(rows_of(stream_packs(packs_on(shelf), recipe, size))) as rows,
            ):
                for _ in follow_rows(run, rows, line, watch, still_good):
                    pass
        return whole.result()


class Totals:
    """Of a run of which some files are planned: estimated by the bytes of the others, and put into the figures."""

    def __init__(self, unplanned: Unplanned, figures: Figures, done: frozenset[str]) -> None:
        self.inputs, self.figures, self.done = unplanned.inputs, figures, done
        self.until = self.bytes = self.rows = self.shards = 0
        self.all_bytes = sum(one.size for one in self.inputs)

    def left(self, part: Part) -> list[Shard]:
        """Counts the part that comes next. Returns its shards that are not done."""
        left = [shard for shard in part.shards if shard.id not in self.done]
        rows, files = sum(shard.rows for shard in part.shards), self.inputs[self.until : part.until]
        self.until, self.bytes = part.until, self.bytes + sum(one.size for one in files)
        self.rows, self.shards = self.rows + rows, self.shards + len(part.shards)
        share = max(1, self.bytes) / max(1, self.all_bytes)  # files may be empty
        self.figures.rows_before += rows - sum(shard.rows for shard in left)
        self.figures.shards_before += len(part.shards) - len(left)
        self.figures.total_rows, self.figures.total_shards = round(self.rows / share), round(self.shards / share)
        if self.until < len(self.inputs):
            self.figures.planning = f"{self.until:,} of {len(self.inputs):,} files planned"
        return left


@contextlib.contextmanager
def planner(unplanned: Unplanned) -> Iterator[tuple[SimpleQueue[Part | None], Future[Plan]]]:
    """A thread that plans: the parts as they come, None after the last one or a failure, and what the plan will be."""
    parts: SimpleQueue[Part | None] = SimpleQueue()
    whole: Future[Plan] = Future()
    stopped = threading.Event()

    def plan() -> None:
        try:
            whole.set_result(unplanned.write(parts.put, stopped.is_set))
        except BaseException as error:
            whole.set_exception(error)
        finally:
            parts.put(None)

    threading.Thread(target=plan, daemon=True, name="planner").start()
    try:
        yield parts, whole
    finally:
        stopped.set()


class PackShelf:
    """The actor between the driver and the tokenizers. Every pack keeps its place, so that whoever begins anew with
    them gets the same.
    """

    def __init__(self) -> None:
        self.packs: list[pa.Table] = []
        self.whole = False

    async def add(self, pack: pa.Table) -> None:
        self.packs.append(pack)

    async def end(self) -> None:
        self.whole = True

    async def get(self, at: int) -> pa.Table | None:
        """The pack at this place, when it is there; None after the last one."""
        while at >= len(self.packs) and not self.whole:
            await asyncio.sleep(LOOK)
        return self.packs[at] if at < len(self.packs) else None


@contextlib.contextmanager
def filled_shelf(todo: Iterable[Iterable[Shard]], tokenizers: int) -> Iterator[ActorHandle]:
    """A shelf that a thread fills with these shards as they come."""
    # Where the driver is, and not on a machine that may go.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    shelf: ActorHandle = ray.remote(num_cpus=0, scheduling_strategy=here)(PackShelf).remote()
    door, shut = threading.Lock(), threading.Event()

    def tell(method: ActorMethod, *arguments: pa.Table) -> None:
        with door:
            if shut.is_set():  # Ray may be gone, and a call would start it anew
                raise CancelledError
            ray.get(method.remote(*arguments))

    def fill() -> None:
        # What the stream cannot do is said by the stream.
        with contextlib.suppress(ray.exceptions.RayError, CancelledError):
            try:
                for shards in map(list, todo):
                    for pack in packs_for(shards, len(shards), tokenizers):
                        tell(shelf.add, pack)
            finally:  # whatever happens, nobody waits for more
                tell(shelf.end)

    threading.Thread(target=fill, daemon=True, name="packs").start()
    try:
        yield shelf
    finally:
        with door:
            shut.set()


def packs_on(shelf: ActorHandle) -> ray.data.Dataset:
    """The packs as they come, a block each, till the shelf's end."""

    def each(_: pa.Table) -> Iterator[pa.Table]:
        at = 0
        while (pack := ray.get(shelf.get.remote(at))) is not None:
            yield pack
            at += 1

    set_up_ray_data()
    # Of no CPU, so that it is there beside the actors that have all of them, and is not made one with a tokenizer.
    return ray.data.from_blocks([pa.table({"": [0]})]).map_batches(
        each, batch_size=None, batch_format="pyarrow", num_cpus=0, concurrency=1
    )
