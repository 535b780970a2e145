"""The pipeline on Ray Data: shards to tokenizer actors, encoder actors, writer actors; a row of figures for each one
that is committed.

Ray Data takes its input as objects that exist before it starts, at some milliseconds each. So many shards go in
together, packed, and the tokenizers, which read them, give out a block for each, as they come to it. Those that one
reading goes through, such as a compressed file's, are in one pack, however many they are, and are read once.
"""

import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from xlmr_ray.batch.cluster import WRITER_CPUS, Sizes
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.ledger.record import record_key
from xlmr_ray.batch.stages.block import committed_block, guarded, to_block
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json, shard_to_json
from xlmr_ray.batch.stages.suspects import restarted_actor
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.stages.write import Write
from xlmr_ray.errors import JobFailed

PACK = 64  # shards at most where each can be read by itself
PACKS = 16  # at least, for each tokenizer, so that all have work to the end

FORGET = 1000  # shards after which Ray Data's statistics are dropped


class TokenizeEach:
    """The tokenizer's step on each shard of a pack, one block out at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self.step = Tokenize(recipe)
        self.restarted = bool(restarted_actor())

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        texts = list(unpacked(block))
        shards = [shard_from_json(text) for text in texts]
        restarted, self.restarted = self.restarted, False
        if restarted:
            # Its pack begins anew, and what it died of may be the last shard of it.
            self.step.suspects.wary = max(self.step.suspects.wary, len(shards))
        for text, shard, self.step.until in zip(texts, shards, ends(shards), strict=True):
            block = to_block(text, {})
            yield guarded(partial(self.unless_committed, shard), block) if restarted else self.step(block)

    def unless_committed(self, shard: Shard, block: pa.Table) -> pa.Table:
        """The step's block; that of a shard with a record where it has one."""
        recipe = self.step.recipe
        there = recipe.store.head(record_key(recipe.run_id, shard.id))
        return self.step(block) if there is None else committed_block(block["shard"][0].as_py())


def stream(todo: Iterable[Shard], count: int, recipe: Recipe, size: Sizes, last: type[Any] = Write) -> ray.data.Dataset:
    """The lazy pipeline over `count` shards, whose `last` step gives the row of each."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # In bytes, so that a block is one row, which cannot be split, and a row is a shard.
    context.target_max_block_size = 1
    dataset = ray.data.from_blocks(list(packs_for(todo, count, size.tokenizers)))
    steps = (
        # A pack may be long: none waits behind it while another tokenizer is free, or begins anew with it.
        (TokenizeEach, size.tokenizers, 1, size.tokenizer_cpus, None),
        (Encode, size.encoders, None, size.encoder_cpus, size.encoder_gpus),
        (last, size.writers, None, WRITER_CPUS, None),
    )
    for step, actors, at_once, cpus, gpus in steps:
        dataset = dataset.map_batches(
            step,
            fn_constructor_args=(recipe,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=at_once),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    return dataset


def ends(shards: Sequence[Shard]) -> list[int]:
    """Of each shard the `stop` of the last of those after it that are read on from it."""
    found: list[int] = []
    for shard, after in zip(reversed(shards), [None, *reversed(shards[1:])], strict=True):
        follows = after is not None and after.input == shard.input and after.start == shard.stop
        found.append(found[-1] if follows else shard.stop)
    return found[::-1]


def packs_for(shards: Iterable[Shard], count: int, tokenizers: int) -> Iterator[pa.Table]:
    """So many shards in packs for so many tokenizers."""
    size = max(1, min(PACK, count // (PACKS * tokenizers)))
    # What one tokenizer could read once is read by several where the others would have nothing to do.
    return packed(shards, size, sys.maxsize if tokenizers == 1 else max(size, -(-count // tokenizers)))


def packed(shards: Iterable[Shard], size: int, most: int = sys.maxsize) -> Iterator[pa.Table]:
    """The shards in order, `size` in a block, and up to `most` while one goes on where the last one ended."""
    pack: list[str] = []
    last: Shard | None = None
    for shard in shards:
        if len(pack) >= most or (len(pack) >= size and last is not None and not shard.goes_on(last)):
            yield _pack(pack)
            pack = []
        pack.append(shard_to_json(shard))
        last = shard
    if pack:
        yield _pack(pack)


def _pack(shards: list[str]) -> pa.Table:
    # Neighbours differ in a few digits.
    return pa.table({"shards": pa.array([zlib.compress(json.dumps(shards).encode(), 1)], pa.binary())})


def unpacked(block: pa.Table) -> Iterator[str]:
    """The shards of a block, as JSON."""
    if block.num_rows != 1:
        raise AssertionError(f"a block of {block.num_rows} packs, wanted one")
    yield from json.loads(zlib.decompress(block["shards"][0].as_py()))


def rows_of(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The dataset's rows as they come. Raises JobFailed for what Ray itself could not do."""
    rows = iter(dataset.iter_rows())
    for number in itertools.count():
        if number % FORGET == 0:
            forget_statistics(dataset)
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise failure(error) from error
        yield row


def forget_statistics(dataset: ray.data.Dataset) -> int:
    """Drops what Ray Data keeps of every block that a running dataset's operators gave out, a kilobyte or so for each
    until the end, for a summary that nobody reads: gigabytes for a million shards. Returns of how many blocks.

    It has no option for that; where its own names change, the memory comes back and nothing else does.
    """
    count = 0
    executor = getattr(dataset, "_current_executor", None)
    for operator in list(getattr(executor, "_topology", None) or ()):
        kept = getattr(operator, "_output_blocks_stats", None)
        if isinstance(kept, list):
            count += len(kept)
            kept.clear()
    return count


def failure(error: BaseException) -> JobFailed:
    """What Ray could not do, in one line; what our steps say comes as data (see `block.guarded`)."""
    while (inner := getattr(error, "cause", None)) is not None and isinstance(inner, BaseException):
        error = inner
    if isinstance(error, ray.data.exceptions.ExecutionTimeoutError):
        seconds = ray.data.DataContext.get_current().execution_no_progress_timeout_s
        return JobFailed(
            f"the cluster does nothing: no shard moved for {seconds:,.0f} s with {cluster_now()}; see that its "
            "machines are there and large enough (RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S sets the wait); run the job "
            "again to go on"
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return JobFailed(f"the cluster failed: {type(error).__name__}: {lines[0]}; run the job again to go on")


def cluster_now() -> str:
    """What the cluster has at this moment."""
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
    except Exception:  # the cluster may be what failed
        return "no answer from the cluster"
    cpus, gpus = (sum(node["Resources"].get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{len(nodes)} machines of {cpus:g} CPUs and {gpus:g} GPUs together"
