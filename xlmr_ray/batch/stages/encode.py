"""The steps of the pipeline that need the model, each a callable on one shard: read and tokenize, and encode."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.read_shard import read_shard, unread_shard
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.observe.machine import device_name, host, operations
from xlmr_ray.batch.stages.bisect import by_halves
from xlmr_ray.batch.stages.block import from_block, guarded, to_block
from xlmr_ray.batch.stages.recipe import Recipe, TaskRecipe, shard_from_json
from xlmr_ray.batch.stages.rows import error_table, fail, fail_all, fail_empty, good_rows, output_table
from xlmr_ray.batch.stages.suspects import Suspects, restarted_actor
from xlmr_ray.batch.stages.tokenized_once import TokenizedOnce
from xlmr_ray.batch.store.base import reading
from xlmr_ray.checkpoint.digest import files_stamp, weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.results import TaskOutput
from xlmr_ray.engine.runners import Loaded, TaskSource, load_runners
from xlmr_ray.errors import JobFailed
from xlmr_ray.tasks.encoded import documents, keep_documents
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tasks.task import Task
from xlmr_ray.tasks.unfit import UnfitRows
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

log = logging.getLogger(__name__)
T = TypeVar("T")

MOST_TRIES = 8  # to tokenize rows of which each time one fails


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


@dataclass(frozen=True)
class Tokenized:
    """Rows of a shard, and for each task the encoded table of those without error."""

    rows: pa.Table
    encoded: list[pa.Table]


class Tokenize:
    """A shard's JSON to its rows and, for each task, the encoded table of the rows without error."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tasks: list[Task] = []
        self.tokenizers: list[TokenizedOnce] = []  # one a task; tasks of equal tokenizers have the same
        self.suspects = Suspects(recipe.store, "tokenize", timeout=recipe.timeout, actor=restarted_actor())
        self.broken = tried(self.load)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self.tokenize, block)

    def load(self) -> None:
        """Tasks and tokenizers, checked to be the run's."""
        # An actor is one core's worth; the cores are shared out by Ray, and the encoder wants the others.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        recipe = self.recipe
        known: dict[tuple[str, int, str], TokenizedOnce] = {}
        for task in recipe.tasks:
            tokenizer = TokenizedOnce.from_pretrained(resolve(task.model))
            check_same(task.model, "tokenizer's pieces", tokenizer.fingerprint, task.tokenizer)
            # Of equal pieces, but with lengths of their own, each keeps its own.
            same = (task.tokenizer, tokenizer.model_max_length, tokenizer.truncation_side)
            self.tokenizers.append(known.setdefault(same, tokenizer))
        self.tasks = [bound(task) for task in recipe.tasks]

    def tokenize(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, _ = from_block(block)
        shard = shard_from_json(text)
        began = time.time()
        with self.suspects.shard(shard.id):
            rows = self.read(shard)
            if not self.recipe.score_empty:
                rows = fail_empty(rows, list(self.recipe.columns.text))
            done = joined(in_pieces(self.tokenized, rows, codes.TOKENIZER_ERROR, self.suspects))
        meta = pa.table({"began": [began], "tokenized": [time.time()]})
        encoded = {f"task{place}": table for place, table in enumerate(done.encoded)}
        return to_block(text, {"rows": done.rows, "meta": meta, **encoded})

    def read(self, shard: Shard) -> pa.Table:
        recipe = self.recipe
        if (failure := self.suspects.unreadable()) is not None:
            return unread_shard(shard, recipe.columns, failure, readers=recipe.readers)
        with self.suspects.reading(), reading(shard.input.key):
            return read_shard(shard, recipe.columns, max_row_bytes=recipe.max_row_bytes, readers=recipe.readers)

    def tokenized(self, rows: pa.Table) -> Tokenized:
        for tokenizer in self.tokenizers:
            tokenizer.forget()
        tables: list[pa.Table] = []
        for task, tokenizer in zip(self.tasks, self.tokenizers, strict=True):
            before = rows
            rows, encoded = prepare(task, tokenizer, rows)
            if rows is not before:
                # What an earlier task has encoded of a row that fails now goes, too.
                kept = np.isin(good_rows(before), good_rows(rows))
                tables = [keep_documents(table, kept)[0] for table in tables]
            tables.append(encoded)
        return Tokenized(rows, tables)


def in_pieces(work: Callable[[pa.Table], T], rows: pa.Table, code: str, suspects: Suspects) -> list[T]:
    """The results of `work` for the rows: at once where all is well, else in pieces and without the rows that fail."""
    done: list[T] = []
    for piece in suspects.pieces(rows.num_rows):
        part = rows.slice(piece.start, piece.stop - piece.start)
        if piece.failure is not None:
            part = fail_all(part, piece.failure)
        with suspects.trying(piece):
            done += by_halves(work, part, code)
    return done


def joined(parts: list[Tokenized]) -> Tokenized:
    """The parts of a shard as one; each numbers its documents from 0."""
    if len(parts) == 1:
        return parts[0]
    counts = [len(good_rows(part.rows)) for part in parts]
    encoded = []
    for tables in zip(*(part.encoded for part in parts), strict=True):
        first = 0
        moved = []
        for count, table in zip(counts, tables, strict=True):
            if "document" in table.column_names:
                numbers = pa.array(documents(table) + first, pa.int32())
                table = table.set_column(table.column_names.index("document"), "document", numbers)
            moved.append(table)
            first += count
        encoded.append(pa.concat_tables(moved))
    return Tokenized(pa.concat_tables(part.rows for part in parts), encoded)


def prepare(task: Task, tokenizer: XLMRobertaTokenizer, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The task's encoded table of the good rows; a row that the tokenizer cannot take becomes an error row.

    Raises RuntimeError where it tells of one row after another that it cannot take: fewer rows at a time cost less.
    """
    for _ in range(MOST_TRIES):
        good = good_rows(rows)
        try:
            return rows, task.prepare(rows.take(good), tokenizer)
        except UnfitRows as error:
            rows = fail(rows, {int(good[place]): failure for place, failure in error.failures.items()})
        except TokenizerError as error:
            # A panic of Rust quotes the text between these.
            reason = error.reason.partition("`")[0].strip()
            rows = fail(rows, {int(good[error.index]): (codes.TOKENIZER_ERROR, reason)})
    raise RuntimeError(f"more than {MOST_TRIES - 1} texts that the tokenizer cannot take")


@dataclass(frozen=True)
class Scored:
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
        return guarded(self.encode, block)

    def load(self) -> None:
        """The engines, checked to have the run's weights."""
        recipe = self.recipe
        if recipe.engine.threads:
            torch.set_num_threads(recipe.engine.threads)
        sources = []
        for task in recipe.tasks:
            folder, one = resolve(task.model), bound(task)
            # The files that the driver has hashed need no second reading.
            if files_stamp(folder, one.files) != task.stamp:
                check_same(task.model, "weights", weights_digest(folder, one.files), task.weights)
            sources.append(TaskSource(one, folder, (task.encoder, task.tokenizer)))
        self.loaded = load_runners(
            sources,
            dtype=recipe.engine.dtype,
            device=recipe.engine.device,
            attn_implementation=recipe.engine.attn_implementation,
            max_tokens=recipe.engine.max_tokens,
            quantization=recipe.engine.quantization,
            compile=recipe.engine.compile,
        )

    def encode(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, tables = from_block(block)
        shard = shard_from_json(text)
        meta = tables["meta"]
        waited = max(0.0, time.time() - meta["tokenized"][0].as_py())  # by two machines' clocks, perhaps
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
        tokens, padded = np.subtract(self.counters(), before).tolist()
        figures = {
            "tokens": tokens,
            "padded": padded,
            "seconds": seconds,
            "operations": self.operations(tables, work_before),
            "encoder_wait": waited,
            "encoded": time.time(),
            "host": host(),
            "device": device_name(self.device),
        }
        for name, value in figures.items():
            meta = meta.append_column(name, pa.array([value]))
        return to_block(text, {"output": output, "errors": error_table(rows, shard.input.key), "meta": meta})

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

    def counters(self) -> tuple[int, int]:
        """Tokens and padded tokens since the start."""
        stats = [one.runner.stats for one in self.loaded]
        return sum(one.tokens for one in stats), sum(one.padded for one in stats)

    def scored(self, tables: Mapping[str, pa.Table], rows: pa.Table) -> Scored:
        """The outputs of the rows, all or a part of those that the encoded tables are of."""
        places = tables["rows"]["_row"].take(good_rows(tables["rows"]))
        good = good_rows(rows)
        wanted = np.isin(places.to_numpy(), rows["_row"].take(good).to_numpy())
        encoded = [tables[f"task{place}"] for place in range(len(self.recipe.tasks))]
        if not wanted.all():
            encoded = [keep_documents(table, wanted)[0] for table in encoded]
        try:
            outputs = self.outputs(encoded)
        except Exception as error:
            self.check_device(error)
            raise
        failures = {document: failure for output in outputs for document, failure in output.failed.items()}
        rows = fail(rows, {int(good[document]): failure for document, failure in failures.items()})
        kept = np.isin(good, good_rows(rows))
        return Scored(rows, [kept_rows(output, kept) for output in outputs])

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
