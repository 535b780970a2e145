"""What one driver drives: shards a second through Ray Data and the commit where the stages compute nothing, and the
CPU and memory of the driver's process meanwhile.

All else of the machine's cores is what actors and Ray itself take; on a cluster they are elsewhere.
usage: python -m tests.benchmarks.driver [--shards 10000] [--cpus 2] [--profile]
"""

import argparse
import cProfile
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tests.batch.runs import errors_of, rows_of
from xlmr_ray.batch import stream
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.record import new_attempt
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.stages import encode, packs
from xlmr_ray.batch.stages.block import from_block, guarded, raise_failure, to_block
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json
from xlmr_ray.batch.stages.shard_cost import Committed, ShardCost
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.store.local import LocalStore
from xlmr_ray.engine.settings import EngineSettings

ROWS = 16


class Tokenized:
    """Gives out a block of a shard's size in tokens for each shard of a pack."""

    def __init__(self, recipe: Recipe) -> None:
        self.tokens = pa.table({"input_ids": pa.array([list(range(300))] * ROWS, pa.list_(pa.int32()))})

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        for shard in packs.unpacked(block):
            yield to_block(shard, {"tokens": self.tokens})


class Encoded:
    def __init__(self, recipe: Recipe) -> None:
        self.output = rows_of("shard", ROWS)

    def __call__(self, block: pa.Table) -> pa.Table:
        shard, _ = from_block(block)
        return to_block(shard, {"output": self.output})


class Written:
    """Commits as the writers do."""

    def __init__(self, recipe: Recipe) -> None:
        self.store = recipe.store

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(lambda block: written(block, self.store), block)


def written(block: pa.Table, store: Store) -> pa.Table:
    text, tables = from_block(block)
    shard = shard_from_json(text)
    record, _ = commit_shard(
        store,
        "0123456789abcdef",
        shard.id,
        attempt=new_attempt(),
        rows=tables["output"],
        errors=errors_of("shard", 0),
        rows_in=ROWS,
        source_key=shard.input.key,
        source_etag=shard.input.etag,
    )
    now = time.time()
    return Committed(record, ShardCost(now, now)).to_row()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def resident() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    import ray
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

    from xlmr_ray.batch.cluster import Sizes

    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="of Ray Data's scheduling thread, by CPU time")
    arguments = parser.parse_args()
    stream.TokenizeEach, encode.Encode = Tokenized, Encoded  # type: ignore[misc, assignment]
    ray.init(num_cpus=arguments.cpus, include_dashboard=False, log_to_driver=False, object_store_memory=500 << 20)
    one = InputFile("s3://corpus/part.parquet", "parquet", "", 10**8, "etag")
    shards = (Shard(f"{0:07d}-{n:06d}", one, n * ROWS, ROWS, n * ROWS, (n + 1) * ROWS) for n in range(arguments.shards))
    with tempfile.TemporaryDirectory(prefix="driver-") as folder:
        columns = Columns(text={"text": "text"})
        recipe = Recipe("0123456789abcdef", LocalStore(folder), columns, {}, (), EngineSettings(), True, None, 1 << 20)
        size = Sizes(
            encoders=1, encoder_cpus=0.2, encoder_gpus=0, tokenizers=1, tokenizer_cpus=0.2, writers=1, threads=1
        )
        figures = Figures(arguments.shards * ROWS, arguments.shards)
        profile = cProfile.Profile(time.thread_time)
        if arguments.profile:
            schedule = StreamingExecutor.run

            def profiled(executor: StreamingExecutor) -> None:
                profile.runcall(schedule, executor)

            StreamingExecutor.run = profiled  # type: ignore[method-assign]
        begun = None
        for row in stream.rows_of(stream.stream(shards, arguments.shards, recipe, size, Written)):
            raise_failure(row)
            figures.add(Committed.from_row(row).record)
            if begun is None:  # the actors are there
                begun, cpu, memory = time.perf_counter(), cpu_seconds(), resident()
            elif figures.shards % (arguments.shards // 5) == 0:
                seconds, done = time.perf_counter() - begun, figures.shards - 1
                used = cpu_seconds() - cpu
                print(
                    f"{done:8,} shards: {done / seconds:7.1f} a second; driver {1000 * used / done:.2f} ms of CPU a "
                    f"shard, {used / seconds:.0%} of a core, {resident():,.0f} MB ({resident() - memory:+,.0f})",
                    flush=True,
                )
        if arguments.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
