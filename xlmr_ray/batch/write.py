"""The last step of the pipeline: output rows and error rows to the store, committed. Runs without torch."""

import time

import pyarrow as pa

from xlmr_ray.batch.block import from_block, guarded
from xlmr_ray.batch.commit import Stats, commit_shard, new_attempt
from xlmr_ray.batch.recipe import Recipe, shard_from_json


class Write:
    """Commits a shard; gives one row of figures, or of the failure.

    An actor, though it holds nothing: Ray stops idle workers after a second, so that a task a shard means a process a
    shard, which was a seventh of a CPU run's time.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(lambda block: commit(block, self.recipe), block)


def commit(block: pa.Table, recipe: Recipe) -> pa.Table:
    text, tables = from_block(block)
    shard = shard_from_json(text)
    meta = tables["meta"].to_pylist()[0]
    record, won = commit_shard(
        recipe.store,
        recipe.run_id,
        shard.id,
        attempt=new_attempt(),
        rows=tables["output"],
        errors=tables["errors"],
        rows_in=shard.rows,
        source_key=shard.input.key,
        source_etag=shard.input.etag,
        stats=Stats(seconds=round(time.time() - meta["began"], 3), tokens=meta["tokens"]),
    )
    return pa.table(
        {
            "shard": [shard.id],
            "won": [won],
            "rows_ok": [record.rows_ok],
            "rows_error": [record.rows_error],
            "tokens": [meta["tokens"]],
            "padded": [meta["padded"]],
            "engine_seconds": [meta["seconds"]],
        }
    )
