"""A job's own documents and tasks, as many as a measurement wants, read and tokenized as a run does it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.batch.stages.rows import fail_empty, good_rows
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.encoded import ragged
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tasks.task import EncoderTask
from xlmr_ray.tasks.vector_precision import UNMEASURED, Ranges
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

# Documents are taken in groups of so many, spread evenly over the first files that hold GROUPS of them.
GROUP = 16
GROUPS = 4096


@dataclass(frozen=True)
class Sample:
    """`columns`: the texts of D documents, no two of them equal; `folders`: each task's checkpoint; `encoded`: each
    task's sequences; `repeated`: the share of the documents taken that were left out, as equal to another.
    """

    folders: list[Path]
    tasks: list[EncoderTask]
    tokenizers: list[XLMRobertaTokenizer]
    columns: pa.Table
    encoded: list[pa.Table]
    repeated: float = 0.0

    @property
    def documents(self) -> int:
        return int(self.columns.num_rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence that goes through the encoder: those of the first task, which the others share."""
        return np.diff(ragged(self.encoded[0]["input_ids"])[1])

    def tokenized(self) -> list[pa.Table]:
        """The encoded tables, made anew: the work of a tokenizer actor."""
        return [task.prepare(self.columns, tok) for task, tok in zip(self.tasks, self.tokenizers, strict=True)]


def take_sample(job: Job, documents: int) -> Sample:
    """At most so many documents of the job's input, without those that a run would report as errors.

    Raises UserError where there are none, or where the job's tasks do not share one pass of one encoder.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # rates are those of one core
    recipes = task_recipes(job)
    if len({(recipe.encoder, recipe.tokenizer) for recipe in recipes}) > 1:
        raise UserError(f"{job.name}: its tasks have several encoders; measure them one by one")
    folders = [resolve(recipe.model) for recipe in recipes]
    tasks: list[EncoderTask] = []
    for recipe, folder in zip(recipes, folders, strict=True):
        task = bind_task(recipe.task, folder, recipe.options)
        if not isinstance(task, EncoderTask):
            raise UserError(f"{job.name}: task {recipe.task} has no fixed cost a document, and is not measured")
        if isinstance(task, Embedding) and task.ranges == UNMEASURED:
            # Those that the run would measure: any cost the same.
            task = replace(task, ranges=Ranges((-1.0,) * task.width, (1.0,) * task.width, task.normalized))
        tasks.append(task)
    columns = columns_of(job, recipes)
    found = find_inputs(job.input.path, format=job.input.format, version=job.input.version, columns=columns)
    shards: list[Shard] = []
    for piece in plan_shards(
        found.inputs, shard_rows=GROUP, columns=columns, readers=job.input.readers, limit=job.input.limit
    ):
        if isinstance(piece, Shard):
            shards.append(piece)
        if len(shards) == GROUPS:
            break
    wanted = min(len(shards), -(-documents // GROUP))
    parts = []
    for index in np.linspace(0, len(shards) - 1, wanted).round().astype(int).tolist():
        rows = read_shard(shards[index], columns, readers=job.input.readers)
        if job.errors.empty == "error":
            rows = fail_empty(rows, list(columns.text))
        parts.append(rows.take(good_rows(rows)).select(list(columns.text)))
    taken = pa.concat_tables(parts).slice(0, documents) if parts else pa.table({})
    if not taken.num_rows:
        raise UserError(f"{', '.join(job.input.path)}: no documents to measure with")
    # Of equal ones a run computes one: rates are those of what is computed. Without threads in their order.
    texts = taken.group_by(taken.column_names, use_threads=False).aggregate([])
    repeated = 1 - texts.num_rows / taken.num_rows
    how = job.engine.pre_tokenizer
    tokenizers = [XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=how) for folder in folders]
    sample = Sample(folders, tasks, tokenizers, texts, [], repeated)
    return replace(sample, encoded=sample.tokenized())
