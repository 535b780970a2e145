"""The steps of the pipeline that need the model, each a callable on one shard: read and tokenize, and encode."""

import os
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from xlmr_ray.batch import codes
from xlmr_ray.batch.block import from_block, guarded, to_block
from xlmr_ray.batch.readers import read_shard
from xlmr_ray.batch.recipe import Recipe, TaskRecipe, shard_from_json
from xlmr_ray.batch.rows import error_table, fail, fail_empty, good_rows, output_table
from xlmr_ray.batch.store import reading
from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.engine import Engine, Results
from xlmr_ray.errors import JobFailed
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tasks.task import Task
from xlmr_ray.tokenizer import TokenizerError, XLMRobertaTokenizer


def bound(recipe: TaskRecipe) -> Task:
    """The task, its checkpoint fetched to this machine where it is not there yet."""
    return bind_task(recipe.task, resolve(recipe.model), recipe.options)


def tried(load: Callable[[], None]) -> Exception | None:
    """What went wrong in loading. It is raised on the first shard: what a constructor raises, Ray wraps beyond
    reading.
    """
    try:
        load()
    except Exception as error:
        return error
    return None


def check_same(model: str, part: str, got: str, wanted: str) -> None:
    """Raises JobFailed where this machine's checkpoint is not the run's."""
    if got != wanted:
        raise JobFailed(
            f"{model}: the {part} on this machine are others ({got[:12]}) than the run's ({wanted[:12]}): "
            "put the same checkpoint on all machines"
        )


class Tokenize:
    """A shard's JSON to its rows and, for each task, the encoded table of the rows without error."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tasks: list[Task] = []
        self.tokenizers: list[XLMRobertaTokenizer] = []
        self.broken = tried(self.load)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self.tokenize, block)

    def load(self) -> None:
        """Tasks and tokenizers, checked to be the run's."""
        # An actor is one core's worth; the cores are shared out by Ray, and the encoder wants the others.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        recipe = self.recipe
        self.tokenizers = [XLMRobertaTokenizer.from_pretrained(resolve(task.model)) for task in recipe.tasks]
        for task, tokenizer in zip(recipe.tasks, self.tokenizers, strict=True):
            check_same(task.model, "tokenizer's pieces", tokenizer.fingerprint, task.tokenizer)
        self.tasks = [bound(task) for task in recipe.tasks]

    def tokenize(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, _ = from_block(block)
        shard = shard_from_json(text)
        began = time.time()
        with reading(shard.input.key):
            rows = read_shard(shard, self.recipe.columns)
        if not self.recipe.score_empty:
            rows = fail_empty(rows, list(self.recipe.columns.text))
        tables: list[pa.Table] = []
        for task, tokenizer in zip(self.tasks, self.tokenizers, strict=True):
            before = rows
            rows, encoded = prepare(task, tokenizer, rows)
            if rows is not before:
                # What an earlier task has encoded of a row that fails now goes, too.
                keep = pa.array(np.isin(good_rows(before), good_rows(rows)))
                tables = [table.filter(keep) for table in tables]
            tables.append(encoded)
        meta = pa.table({"began": [began]})
        return to_block(text, {"rows": rows, "meta": meta, **{f"task{i}": table for i, table in enumerate(tables)}})


def prepare(task: Task, tokenizer: XLMRobertaTokenizer, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The task's encoded table of the good rows; a row that the tokenizer cannot take becomes an error row."""
    while True:
        good = good_rows(rows)
        try:
            return rows, task.prepare(rows.take(good), tokenizer)
        except TokenizerError as error:
            rows = fail(rows, {int(good[error.index]): (codes.TOKENIZER_ERROR, error.reason)})


class Encode:
    """Rows and encoded tables to output rows and error rows."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.engines: list[Engine] = []
        self.broken = tried(self.load)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self.encode, block)

    def load(self) -> None:
        """The engines, checked to have the run's weights."""
        recipe = self.recipe
        if recipe.engine.threads:
            torch.set_num_threads(recipe.engine.threads)
        for task in recipe.tasks:
            folder = resolve(task.model)
            check_same(task.model, "weights", weights_digest(folder), task.weights)
            engine = recipe.engine
            self.engines.append(
                Engine.load(
                    folder,
                    [bound(task)],
                    dtype=engine.dtype,
                    device=engine.device,
                    attn_implementation=engine.attn_implementation,
                    max_tokens=engine.max_tokens,
                )
            )

    def encode(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, tables = from_block(block)
        shard = shard_from_json(text)
        rows = tables["rows"]
        good = good_rows(rows)
        runs: list[Results] = []
        failures: dict[int, tuple[str, str]] = {}
        tokens = padded = 0
        start = time.perf_counter()
        for i, engine in enumerate(self.engines):
            before = (engine.stats.tokens, engine.stats.padded)
            results = engine.run(tables[f"task{i}"]["input_ids"])
            runs.append(results)
            failures |= {int(good[place]): failure for place, failure in results.failed.items()}
            tokens += engine.stats.tokens - before[0]
            padded += engine.stats.padded - before[1]
        seconds = time.perf_counter() - start
        rows = fail(rows, failures)
        keep = np.isin(good, good_rows(rows))
        tables_out: list[tuple[str, pa.Table]] = []
        for i, (engine, run, task) in enumerate(zip(self.engines, runs, self.recipe.tasks, strict=True)):
            encoded = tables[f"task{i}"].filter(pa.array(keep))
            tables_out.append((task.prefix, engine.tasks[0].postprocess(run.raw[0][keep], encoded)))
        output = output_table(rows.take(good[keep]), shard.input.key, self.recipe.columns, tables_out)
        meta = tables["meta"]
        for name, value in (("tokens", tokens), ("padded", padded), ("seconds", seconds)):
            meta = meta.append_column(name, pa.array([value]))
        return to_block(text, {"output": output, "errors": error_table(rows, shard.input.key), "meta": meta})
