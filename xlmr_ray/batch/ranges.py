"""Ranges of 8-bit vectors that a run measures itself, where its job says none: over a sample of its input, once.

    _runs/<run_id>/ranges/<task>.json   created once; the file that `ranges` of a job or a service may name

Every launch of the run reads what the first one wrote. An incremental run has the ranges of the run that it comes
after, so that a code means the same in all rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.batch.cluster import Sizes
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.shard_table import ShardTable
from xlmr_ray.batch.ledger.json_by_line import parsed
from xlmr_ray.batch.ledger.snapshot import DATA, read_step, table_files
from xlmr_ray.batch.stages.block import from_block, guarded, raise_failure
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import Recipe, TaskRecipe, shard_from_json
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.batch.stream import rows_of, stream
from xlmr_ray.errors import JobFailed
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.vector_precision import UNMEASURED, Ranges, read_ranges, to_json

# Of a run's documents one in so many is in the sample, but so many at least and at most, in whole shards; and so many
# shards at least, from places spread evenly over the input: a file may be of one language.
EVERY, FEWEST, MOST, PLACES = 100, 256, 4096, 8


def ranges_key(run_id: str, task: TaskRecipe) -> str:
    """Under the name that the job gives the task, if it gives one, or its own."""
    return f"_runs/{run_id}/ranges/{task.prefix.rstrip('_') or task.task}.json"


def unmeasured(tasks: Sequence[TaskRecipe]) -> list[TaskRecipe]:
    return [task for task in tasks if task.options.get("ranges") == UNMEASURED]


def known_ranges(recipe: Recipe, after: str | None) -> Recipe:
    """The recipe with those ranges that the run has, or the run that it comes `after`."""
    found = {}
    for task in unmeasured(recipe.tasks):
        data = kept_ranges(recipe.store, recipe.run_id, after, task)
        if data is not None:
            found[task.prefix] = data
    return with_ranges(recipe, found)


def kept_ranges(store: Store, run_id: str, after: str | None, task: TaskRecipe) -> bytes | None:
    """What the run has of a task's ranges, or takes over from those before it; None where no run has measured yet."""
    own = ranges_key(run_id, task)
    try:
        return store.get(own)[0]
    except FileNotFoundError:
        pass
    before = after
    while before is not None:
        try:
            return created(store, own, store.get(ranges_key(before, task))[0])
        except FileNotFoundError:
            step = read_step(store, before)
            before = None if step is None else step.after
    if after is not None and next(table_files(store, after, DATA), None) is not None:
        raise JobFailed(
            f"{store.url(ranges_key(after, task))}: is missing: the published vectors are between its ranges, and new "
            "ones could not be compared with them; put it back, or start another output"
        )
    return None


def created(store: Store, key: str, data: bytes) -> bytes:
    """What is under the key after all: another launch may have been faster."""
    try:
        store.create(key, data)
    except Exists:
        return store.get(key)[0]
    return data


def with_ranges(recipe: Recipe, found: Mapping[str, bytes]) -> Recipe:
    """The recipe with the ranges of files, by their tasks' prefixes."""
    tasks = []
    for task in recipe.tasks:
        if task.prefix in found and task.options.get("ranges") == UNMEASURED:
            content = parsed(found[task.prefix], recipe.store.url(ranges_key(recipe.run_id, task)))
            task = replace(task, options={**task.options, "ranges": read_ranges(task.task, content)})
        tasks.append(task)
    return replace(recipe, tasks=tuple(tasks))


def with_measured_ranges(recipe: Recipe, shards: ShardTable, size: Sizes, note: Callable[[str], None]) -> Recipe:
    """The recipe with ranges for all tasks: what is not known yet is measured on the connected cluster, and kept.

    Raises JobFailed where the sample has no vector.
    """
    wanted = unmeasured(recipe.tasks)
    if not wanted:
        return recipe
    indices = sampled_shards(len(shards), shards.rows)
    note(f"measuring the ranges of {wanted[0].options['precision']} vectors on {len(indices)} of {len(shards)} shards")
    floats = {"precision": "float32", "ranges": None}
    tasks = tuple(replace(task, options={**task.options, **floats}) for task in wanted)
    rows = []
    sampling = replace(recipe, tasks=tasks)
    for row in rows_of(stream((shards[at] for at in indices), len(indices), sampling, size, last=Measure)):
        try:
            raise_failure(row)
        except InputChanged:
            continue  # the run itself tells of it
        rows.append(row)
    found = {}
    for number, task in enumerate(wanted):
        sides = [row[f"task{number}"] for row in rows if row["vectors"]]
        if not sides:
            raise JobFailed(
                f"task {task.task}: none of the {len(indices)} shards of the sample has a vector to measure ranges "
                "with; name ranges"
            )
        low, high = np.min([low for low, _ in sides], axis=0), np.max([high for _, high in sides], axis=0)
        own = bound_task(task)
        assert isinstance(own, Embedding)
        ranges = Ranges(tuple(low.tolist()), tuple(high.tolist()), own.normalized)
        data = to_json(ranges, sum(row["vectors"] for row in rows)).encode()
        found[task.prefix] = created(recipe.store, ranges_key(recipe.run_id, task), data)
    return with_ranges(recipe, found)


def sampled_shards(shards: int, rows: int) -> list[int]:
    """The indices of the shards to measure on, of so many that have so many rows together."""
    documents = min(max(rows // EVERY, FEWEST), MOST)
    count = min(max(-(-documents * shards // max(rows, 1)), PLACES), shards)
    indices: list[int] = np.linspace(0, shards - 1, count).round().astype(int).tolist()
    return indices


class Measure:
    """The last step of the sample's pipeline: of each task's vectors in a shard the smallest and the largest number of
    each dimension, and how many vectors there are.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self.measure, block)

    def measure(self, block: pa.Table) -> pa.Table:
        text, tables = from_block(block)
        output = tables["output"]
        row = {"shard": [shard_from_json(text).id], "vectors": [output.num_rows]}
        for number, task in enumerate(self.recipe.tasks):
            row[f"task{number}"] = [extremes(output[f"{task.prefix}embedding"])]
        return pa.table(row)


def extremes(column: pa.ChunkedArray) -> list[list[float]]:
    """The smallest and the largest number of each dimension of a column of vectors, none of which may be there."""
    vectors: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
    return [vectors.min(axis=0).tolist(), vectors.max(axis=0).tolist()] if len(vectors) else [[], []]
