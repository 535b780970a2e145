"""The step of the pipeline that reads a shard and tokenizes it, a callable on one shard."""

import os
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.read_shard import unread_shard
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.stages.block import from_block, guarded, to_block
from xlmr_ray.batch.stages.checkpoints import bound_task, check_same, tried
from xlmr_ray.batch.stages.recipe import Recipe, rows_of_shard, shard_from_json
from xlmr_ray.batch.stages.reuse import Reuse, hashes_of
from xlmr_ray.batch.stages.rows import fail_empty, fail_rows, good_rows, output_table
from xlmr_ray.batch.stages.shard_cost import ShardCost
from xlmr_ray.batch.stages.suspects import Suspects, in_pieces, restarted_actor
from xlmr_ray.batch.stages.tokenized_once import TokenizedOnce
from xlmr_ray.batch.store.filesystem import reading
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.tasks.encoded import documents, keep_documents
from xlmr_ray.tasks.task import Task
from xlmr_ray.tasks.unfit import UnfitRows
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

MOST_TRIES = 8  # to tokenize rows of which each time one fails


@dataclass(frozen=True)
class Tokenized:
    """Rows of a shard, and for each task the encoded table of those without error."""

    rows: pa.Table
    encoded: list[pa.Table]


class Tokenize:
    """A shard's JSON to its rows and, for each task, the encoded table of the rows without error."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.source: Source | None = None  # of the shard before, to be read on
        self.until = 0  # see `Source`
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
            tokenizer = TokenizedOnce.from_pretrained(resolve(task.model), pre_tokenizer=recipe.pre_tokenizer)
            check_same(task.model, "tokenizer's pieces", tokenizer.fingerprint, task.tokenizer)
            # Of equal pieces, but with different lengths, each keeps its own.
            same = (task.tokenizer, tokenizer.model_max_length, tokenizer.truncation_side)
            self.tokenizers.append(known.setdefault(same, tokenizer))
        self.tasks = [bound_task(task) for task in recipe.tasks]
        named = zip(recipe.tasks, self.tasks, strict=True)
        fields = [one.with_name(part.prefix + one.name) for part, task in named for one in task.schema]
        self.reuse = Reuse(recipe.store, recipe.before, pa.schema(fields))

    def tokenize(self, block: pa.Table) -> pa.Table:
        if self.broken:
            raise self.broken
        text, _ = from_block(block)
        shard = shard_from_json(text)
        began = time.time()
        more: dict[str, pa.Table] = {}
        with self.suspects.shard(shard.id):
            rows = self.read(shard)
            if self.recipe.reuse:
                rows, more = self.reused(shard.input.key, rows)
            done = self.of_rows(rows)
        cost = pa.table({"cost": [ShardCost(began, time.time()).to_json()]})
        encoded = {f"task{index}": table for index, table in enumerate(done.encoded)}
        return to_block(text, {"rows": done.rows, "cost": cost, **encoded, **more})

    def reused(self, source: str, rows: pa.Table) -> tuple[pa.Table, dict[str, pa.Table]]:
        """The rows that are to be computed; the hashes of all good ones, and the output rows of the others."""
        columns = self.recipe.columns
        hashes = hashes_of(rows, list(columns.text))
        which, results = self.reuse.results(source, hashes)
        taken = good_rows(rows)[which]
        output = output_table(rows.take(taken), source, columns, [("", results)])
        left = np.ones(rows.num_rows, np.bool_)
        left[taken] = False
        return rows.filter(pa.array(left)), {"hashes": hashes, "reused": output}

    def read(self, shard: Shard) -> pa.Table:
        recipe = self.recipe
        if (failure := self.suspects.unreadable()) is not None:
            return unread_shard(shard, recipe.columns, failure, readers=recipe.readers, kept=recipe.kept)
        with self.suspects.reading(), reading(shard.input.key):
            source, self.source = self.source, None  # after an error it is of no use
            if source is not None and source.input != shard.input:
                source.leave()
                source = None
            source = source or Source(shard.input)
            source.until = self.until
            rows = rows_of_shard(recipe, shard, source)
            self.source = source
            return rows

    def of_rows(self, rows: pa.Table) -> Tokenized:
        """Of some rows of a shard; those that cannot be tokenized are error rows then."""
        if not self.recipe.score_empty:
            rows = fail_empty(rows, list(self.recipe.columns.text))
        return joined_shard(in_pieces(self.tokenized, rows, codes.TOKENIZER_ERROR, self.suspects))

    def tokenized(self, rows: pa.Table) -> Tokenized:
        for tokenizer in self.tokenizers:
            tokenizer.forget()
        tables: list[pa.Table] = []
        for task, tokenizer in zip(self.tasks, self.tokenizers, strict=True):
            before = rows
            rows, encoded = encoded_rows(task, tokenizer, rows)
            if rows is not before:
                # What an earlier task has encoded of a row that fails now goes, too.
                kept = np.isin(good_rows(before), good_rows(rows))
                tables = [keep_documents(table, kept)[0] for table in tables]
            tables.append(encoded)
        return Tokenized(rows, tables)


def joined_shard(parts: list[Tokenized]) -> Tokenized:
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


def encoded_rows(task: Task, tokenizer: XLMRobertaTokenizer, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The task's encoded table of the good rows; a row that the tokenizer cannot take becomes an error row.

    Raises RuntimeError where it tells of one row after another that it cannot take: fewer rows at a time cost less.
    """
    for _ in range(MOST_TRIES):
        good = good_rows(rows)
        try:
            return rows, task.prepare(rows.take(good), tokenizer)
        except UnfitRows as error:
            rows = fail_rows(rows, {int(good[index]): failure for index, failure in error.failures.items()})
        except TokenizerError as error:
            # A panic of Rust quotes the text between these.
            reason = error.reason.partition("`")[0].strip()
            rows = fail_rows(rows, {int(good[error.index]): (codes.TOKENIZER_ERROR, reason)})
    raise RuntimeError(f"more than {MOST_TRIES - 1} texts that the tokenizer cannot take")
