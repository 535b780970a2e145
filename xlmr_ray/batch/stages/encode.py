"""The steps of the pipeline that need the model, each a callable on one shard: read and tokenize, and encode."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from xlmr_ray.batch import codes
from xlmr_ray.batch.ledger.record import Stats
from xlmr_ray.batch.observe.machine import device_name, host, operations
from xlmr_ray.batch.stages.block import COMMITTED, from_block, guarded, to_block
from xlmr_ray.batch.stages.checkpoints import bound_task, check_same, tried
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json
from xlmr_ray.batch.stages.rows import error_table, fail_rows, good_rows, output_table
from xlmr_ray.batch.stages.shard_cost import ShardCost
from xlmr_ray.batch.stages.suspects import Suspects, in_pieces, restarted_actor
from xlmr_ray.checkpoint.digest import files_stamp, weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.results import TaskOutput
from xlmr_ray.engine.runners import Loaded, TaskSource, load_runners
from xlmr_ray.tasks.encoded import keep_documents
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredShard:
    """Rows of a shard, and for each task the output rows of those without error."""

    rows: pa.Table
    outputs: list[pa.Table]


class Encode:
    """Rows and encoded tables to output rows and error rows."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.loaded: list[Loaded] = []
        self.suspects = Suspects(recipe.store, "encode", timeout=recipe.timeout, actor=restarted_actor())
        self.broken = tried(self.load)

    def __call__(self, block: pa.Table) -> pa.Table:
        if COMMITTED in block.column_names:
            return block
        return guarded(self.encode, block)

    def load(self) -> None:
        """The engines, checked to have the run's weights."""
        recipe = self.recipe
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        if 0 < recipe.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(recipe.gpus)  # others have the rest
        sources = []
        for task in recipe.tasks:
            folder, one = resolve(task.model), bound_task(task)
            # The files that the driver has hashed need no second reading.
            if files_stamp(folder, one.files) != task.stamp:
                check_same(task.model, "weights", weights_digest(folder, one.files), task.weights)
            tokenizer = None
            if recipe.pre_tokenizer is not None:
                tokenizer = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=recipe.pre_tokenizer)
                one.read_with(tokenizer)
            sources.append(TaskSource(one, folder, (task.encoder, task.tokenizer), tokenizer))
        self.loaded = load_runners(sources, recipe.engine)
        for number, loaded in enumerate(self.loaded):
            if recipe.known is not None and isinstance(loaded.runner, Engine):
                loaded.runner.known, loaded.runner.known_as = recipe.known, b"%d" % number

    def encode(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, tables = from_block(block)
        shard = shard_from_json(text)
        cost = ShardCost.from_json(tables["cost"]["cost"][0].as_py())
        waited = max(0.0, time.time() - cost.tokenized)  # by two machines' clocks, perhaps
        before, work_before = self.counters(), [one.runner.stats.tokens for one in self.loaded]
        start = time.perf_counter()
        with self.suspects.shard(shard.id):
            work = partial(self.scored, tables)
            parts = in_pieces(work, tables["rows"], codes.SCORING_ERROR, self.suspects)
        seconds = time.perf_counter() - start
        rows = pa.concat_tables(part.rows for part in parts)
        outputs = [pa.concat_tables(several) for several in zip(*(part.outputs for part in parts), strict=True)]
        named = [(task.prefix, output) for task, output in zip(self.recipe.tasks, outputs, strict=True)]
        output = output_table(rows.take(good_rows(rows)), shard.input.key, self.recipe.columns, named)
        reused = tables.get("reused")
        if reused is not None and reused.num_rows:
            output = pa.concat_tables([output, reused.cast(output.schema)])
            output = output.take(pc.sort_indices(output, [("row", "ascending")]))
        tokens, padded, repeated = np.subtract(self.counters(), before).tolist()
        stats = Stats(
            tokens=tokens,
            padded=padded,
            repeated=repeated,
            reused=0 if reused is None else reused.num_rows,
            engine_seconds=round(seconds, 3),
            operations=self.operations(tables, work_before),
            host=host(),
            device=device_name(self.device),
        )
        cost = replace(cost, encoded=time.time(), encoder_wait=waited, stats=stats)
        figures = pa.table({"cost": [cost.to_json()]})
        hashes = {"hashes": tables["hashes"]} if "hashes" in tables else {}
        errors = error_table(rows, shard.input.key)
        return to_block(text, {"output": output, "errors": errors, "cost": figures, **hashes})

    @property
    def device(self) -> torch.device:
        return self.loaded[0].runner.device

    def operations(self, tables: Mapping[str, pa.Table], tokens: list[int]) -> float:
        """Floating point operations of the encoders since they had seen so many tokens."""
        return sum(
            operations(config, one.runner.stats.tokens - before, [tables[f"task{index}"] for index in one.indices])
            for one, before in zip(self.loaded, tokens, strict=True)
            if (config := one.runner.encoder_config) is not None
        )

    def counters(self) -> tuple[int, int, int]:
        """Tokens, padded and repeated tokens since the start."""
        stats = [one.runner.stats for one in self.loaded]
        return sum(one.tokens for one in stats), sum(one.padded for one in stats), sum(one.repeated for one in stats)

    def scored(self, tables: Mapping[str, pa.Table], rows: pa.Table) -> ScoredShard:
        """The outputs of the rows, all or a part of those that the encoded tables are of."""
        of_tables = tables["rows"]["_row"].take(good_rows(tables["rows"]))
        good = good_rows(rows)
        wanted = np.isin(of_tables.to_numpy(), rows["_row"].take(good).to_numpy())
        encoded = [tables[f"task{index}"] for index in range(len(self.recipe.tasks))]
        if not wanted.all():
            encoded = [keep_documents(table, wanted)[0] for table in encoded]
        try:
            outputs = self.outputs(encoded)
        except Exception as error:
            self.check_device(error)
            raise
        failures = {document: failure for output in outputs for document, failure in output.failed.items()}
        rows = fail_rows(rows, {int(good[document]): failure for document, failure in failures.items()})
        kept = np.isin(good, good_rows(rows))
        return ScoredShard(rows, [kept_rows(output, kept) for output in outputs])

    def outputs(self, encoded: list[pa.Table]) -> list[TaskOutput]:
        """Each task's output for its encoded table."""
        found: dict[int, TaskOutput] = {}
        for one in self.loaded:
            own = one.runner.outputs([encoded[index] for index in one.indices])
            found |= dict(zip(one.indices, own, strict=True))
        return [found[index] for index in range(len(encoded))]

    def check_device(self, error: Exception) -> None:
        """Ends the process if the error has left its GPU's context unusable: whatever follows there would fail, too."""
        for one in self.loaded:
            if one.runner.device.type == "cuda":
                try:
                    torch.cuda.synchronize(one.runner.device)
                except RuntimeError:
                    log.exception("the GPU's context is lost, the process ends and is started anew: %s", error)
                    os._exit(1)


def kept_rows(output: TaskOutput, kept: NDArray[np.bool_]) -> pa.Table:
    """The rows of the documents that are kept; those that failed in this task have none."""
    there = np.ones(len(kept), np.bool_)
    there[list(output.failed)] = False
    return output.table.filter(pa.array(kept[there]))
