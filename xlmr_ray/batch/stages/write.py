"""The last step of the pipeline: output rows and error rows to the store, committed. Runs without torch."""

import time
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.record import new_attempt, read_record
from xlmr_ray.batch.observe.report.counts import kinds, summarize
from xlmr_ray.batch.stages.block import COMMITTED, from_block, guarded
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json
from xlmr_ray.batch.stages.shard_cost import Committed, ShardCost
from xlmr_ray.batch.store import retry_counter as retries


class Write:
    """Commits a shard; gives one row, a `Committed` or the failure.

    An actor, though it holds nothing: Ray stops idle workers after a second, so that a task a shard means a process a
    shard, which was a seventh of a CPU run's time.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(lambda block: commit(block, self.recipe), block)


def commit(block: pa.Table, recipe: Recipe) -> pa.Table:
    if COMMITTED in block.column_names:
        there = read_record(recipe.store, recipe.run_id, shard_from_json(block["shard"][0].as_py()).id)
        assert there is not None
        return Committed(there, ShardCost(time.time(), time.time(), stats=there.stats)).to_row()
    text, tables = from_block(block)
    shard = shard_from_json(text)
    cost = ShardCost.from_json(tables["cost"]["cost"][0].as_py())
    waited = max(0.0, time.time() - cost.encoded)  # by two machines' clocks, perhaps
    prefixes = [task.prefix for task in recipe.tasks]
    summary = summarize(tables["output"], prefixes, kinds(recipe.columns), kept=recipe.columns.keep)
    hashes = tables.get("hashes")
    if hashes is not None:
        hashes = hashes.filter(pc.is_in(hashes["row"], tables["output"]["row"].combine_chunks()))
    before = retries.total()
    record, _ = commit_shard(
        recipe.store,
        recipe.run_id,
        shard.id,
        attempt=new_attempt(),
        rows=tables["output"],
        errors=tables["errors"],
        rows_in=shard.rows,
        source_key=shard.input.key,
        source_etag=shard.input.etag,
        stats=replace(cost.stats, seconds=round(time.time() - cost.began, 3), summary=summary.to_json()),
        hashes=hashes,
    )
    return Committed(record, replace(cost, writer_wait=waited, retries=retries.total() - before)).to_row()
