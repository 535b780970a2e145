"""The last step of the pipeline: output rows and error rows to the store, committed. Runs without torch."""

import json
import time

import pyarrow as pa

from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.record import Stats, new_attempt
from xlmr_ray.batch.observe.report.counts import kinds, summarize
from xlmr_ray.batch.stages.block import from_block, guarded
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json
from xlmr_ray.batch.store import retry_counter as retries


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
    waited = max(0.0, time.time() - meta["encoded"])  # by two machines' clocks, perhaps
    prefixes = [task.prefix for task in recipe.tasks]
    summary = summarize(tables["output"], prefixes, kinds(recipe.columns), kept=recipe.columns.keep)
    before = retries.total()
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
        stats=Stats(
            seconds=round(time.time() - meta["began"], 3),
            tokens=meta["tokens"],
            padded=meta["padded"],
            engine_seconds=round(meta["seconds"], 3),
            operations=meta["operations"],
            host=meta["host"],
            device=meta["device"],
            summary=summary.to_json(),
        ),
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
            "operations": [meta["operations"]],
            "tokenizer_seconds": [meta["tokenized"] - meta["began"]],
            "encoder_wait": [meta["encoder_wait"]],
            "writer_wait": [waited],
            "retries": [retries.total() - before],
            "device": [meta["device"]],
            "errors": [json.dumps(dict(record.errors))],
        }
    )
