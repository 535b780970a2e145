"""The pipeline on Ray Data: shards to tokenizer actors, encoder actors, writer actors; a row of figures for each one
that is committed.
"""

import gc
import itertools
from collections.abc import Generator, Iterable
from typing import Any

import ray
import ray.data

from xlmr_ray.batch.cluster import WRITER_CPUS, Sizes
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.stages.packs import TokenizeEach, packs_for
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.write import Write
from xlmr_ray.errors import JobFailed

FORGET = 1000  # shards after which Ray Data's statistics are dropped


def stream(todo: Iterable[Shard], count: int, recipe: Recipe, size: Sizes, last: type[Any] = Write) -> ray.data.Dataset:
    """The lazy pipeline over `count` shards, whose `last` step gives the row of each."""
    set_up_ray_data()
    packs = list(packs_for(todo, count, size.grown(size.tokenizers)))
    return stream_packs(ray.data.from_blocks(packs), recipe, size, last)


def set_up_ray_data() -> None:
    """For datasets that are made from now on."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # In bytes, so that a block is one row, which cannot be split, and a row is a shard.
    context.target_max_block_size = 1
    # A pool grows while all of it has work: a tokenizer is given one pack at a time, so that it never has more.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0


def stream_packs(packs: ray.data.Dataset, recipe: Recipe, size: Sizes, last: type[Any] = Write) -> ray.data.Dataset:
    """The same over a dataset of packs of shards, a block each, that was made after `set_up_ray_data`."""
    # Here: torch takes seconds, and whoever only reads rows of a stream does without it.
    from xlmr_ray.batch.stages.encode import Encode

    steps = (
        # A pack may be long: none waits behind it while another tokenizer is free, or begins anew with it.
        (TokenizeEach, size.tokenizers, 1, size.tokenizer_cpus, None),
        (Encode, size.encoders, None, size.encoder_cpus, size.encoder_gpus),
        (last, size.writers, None, WRITER_CPUS, None),
    )
    for step, actors, at_once, cpus, gpus in steps:
        packs = packs.map_batches(
            step,
            fn_constructor_args=(recipe,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=actors, max_size=size.grown(actors), max_tasks_in_flight_per_actor=at_once
            ),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    return packs


def rows_of(dataset: ray.data.Dataset) -> Generator[dict[str, Any]]:
    """The dataset's rows as they come. Raises JobFailed for what Ray itself could not do.

    The actors end with it, however it ends. They would live as long as the dataset, which an exception keeps by its
    traceback, and the next run in a session of the caller's own would wait for their CPUs and GPUs.
    """
    rows = iter(dataset.iter_rows())
    failed: JobFailed | None = None
    try:
        for number in itertools.count():
            if number % FORGET == 0:
                forget_statistics(dataset)
            try:
                row = next(rows)
            except StopIteration:
                break
            except Exception as error:
                failed = failure(error)
                break
            yield row
    finally:
        del rows, dataset
        gc.collect()  # Ray Data's executor is in a cycle
    if failed is not None:
        raise failed


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
