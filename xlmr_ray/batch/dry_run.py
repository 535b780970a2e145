"""`xlmr-ray run --dry-run`: the checks of a launch, and what it would read, start and write; none of it is done."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from xlmr_ray.batch.cluster import Sizes, connected_if_there, resources
from xlmr_ray.batch.done import earlier
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import INPUT, ROWS
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.lease import lease_ttl
from xlmr_ray.batch.observe.lineage import check_installed
from xlmr_ray.batch.plan import Plan
from xlmr_ray.batch.prepare import checked_store, describe, prepare_run
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.repeats import Keeping
from xlmr_ray.batch.score import check_errors, sizes_of
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.rows import output_table
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.store.filesystem import reading
from xlmr_ray.batch.store.unwritten import Unwritten
from xlmr_ray.engine.passes import passes_of
from xlmr_ray.tasks.encoded import lengths
from xlmr_ray.tasks.task import EncoderTask, Task
from xlmr_ray.text.plural import plural
from xlmr_ray.text.progress_line import say

# Documents that are read and tokenized, to tell how many tokens there are: all, where there are no more of them.
DOCUMENTS = 256
SHARDS = 16  # that they are from where there are more


@dataclass(frozen=True)
class Sampled:
    """What some rows of a run are: how many were read, how many have results in the table before (`reuse`), the tokens
    that the others take to compute, how many are error rows by code, and the schema of the output.
    """

    rows: int
    reused: int
    tokens: int
    errors: Counter[str]
    schema: pa.Schema


def dry_run(job: Job, console: Console, *, at_least_once: bool = False) -> None:
    """Prints what a launch of the job would do. Raises what a launch would: UserError, or JobFailed where files that
    cannot be read are more error rows than the job allows.
    """
    store = Unwritten(checked_store(job.output.path, lambda store: store.check(), at_least_once=at_least_once))
    lease_ttl()
    if job.lineage is not None:
        check_installed()
    with connected_if_there(job.cluster.address):
        prepared = prepare_run(job, store)
        plan, recipe = prepared.plan, prepared.recipe
        figures = Figures(plan.rows, len(plan.shards) + len(plan.dead))
        done = earlier(store, plan, figures, prepared.found.withdrawn if prepared.found else frozenset())
        left = np.flatnonzero(~done.shards)
        size, kept = sizes_of(job, recipe, plan.shards, left, resources())
        say(console, describe(prepared, done.count))
        if len(left):
            show_plan(plan, left, recipe, kept, size, console)
        else:
            say(console, "nothing is left to do")
        figures.rows_error += sum(file.rows for file in plan.dead if file.id not in done.files)
        check_errors(job, plan, figures, "a run would end there")
    say(console, "a dry run: nothing was started or written")


def show_plan(
    plan: Plan, left: NDArray[np.int64], recipe: Recipe, kept: Keeping, size: Sizes, console: Console
) -> None:
    """What the shards that are `left`, by index, would take."""
    columns = plan.shards.columns[left]  # (left, 6)
    inputs = [plan.shards.inputs[index] for index in np.unique(columns[:, INPUT])]
    kinds = Counter(" ".join(filter(None, (one.format, one.compression))) for one in inputs)
    named = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    say(console, f"files   {named}; {sum(one.size for one in inputs):,} bytes")
    rows = int(columns[:, ROWS].sum())
    found = sampled(
        [plan.shards[int(index)] for index in (left if rows <= DOCUMENTS else evenly_spread(left, SHARDS))], recipe
    )
    about = "" if found.rows == rows and not kept.spared else "about "
    tokens = round(found.tokens / max(1, found.rows) * rows * (1 - kept.spared))
    say(console, f"tokens  {about}{tokens:,}, by {plural(found.rows, 'document')} that were tokenized")
    if recipe.reuse:
        say(console, f"reuse   {found.reused:,} of these {found.rows:,} documents have results in the table before")
    if kept.found is not None:
        say(console, f"repeats {kept}")
    if found.errors:
        codes = ", ".join(f"{count:,} {code}" for code, count in found.errors.most_common())
        say(console, f"errors  {codes}, in these {found.rows:,} documents")
    say(console, f"actors  {size}")
    say(console, f"output  {recipe.store.url(f'data/{plan.run_id}/')}")
    width = max(map(len, found.schema.names))
    for field in found.schema:
        say(console, f"        {field.name:{width}}  {field.type}")


def sampled(shards: Sequence[Shard], recipe: Recipe) -> Sampled:
    """Of all rows where they are few, else of as many of each shard."""
    step = Tokenize(recipe)
    if step.broken:
        raise step.broken
    whole = sum(shard.rows for shard in shards) <= DOCUMENTS
    count = reused = tokens = 0
    errors: Counter[str] = Counter()
    for shard in shards:
        with reading(shard.input.key):
            rows = step.read(shard)
        if not whole:
            rows = rows.take(evenly_spread(np.arange(rows.num_rows), DOCUMENTS // len(shards)))
        count += rows.num_rows
        if recipe.reuse:
            rows, more = step.reused(shard.input.key, rows)
            reused += more["reused"].num_rows
        done = step.of_rows(rows)
        tokens += computed_tokens(recipe, step.tasks, done.encoded)
        errors.update(code for code in done.rows["_code"].to_pylist() if code)
    pairs = zip(recipe.tasks, step.tasks, strict=True)
    results = [(one.prefix, task.schema.empty_table()) for one, task in pairs]
    schema = output_table(done.rows.slice(0, 0), shards[0].input.key, recipe.columns, results).schema
    return Sampled(count, reused, tokens, errors, schema)


def evenly_spread(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the numbers, evenly spread."""
    chosen: NDArray[np.int64] = numbers[np.linspace(0, len(numbers) - 1, min(len(numbers), most)).round().astype(int)]
    return chosen


def computed_tokens(recipe: Recipe, tasks: Sequence[Task], encoded: Sequence[pa.Table]) -> int:
    """Tokens that it takes to compute the tasks' encoded tables; tasks of one encoder share its passes."""
    total = 0
    groups: dict[tuple[str, str], list[pa.Table]] = {}
    for one, task, table in zip(recipe.tasks, tasks, encoded, strict=True):
        if isinstance(task, EncoderTask):
            groups.setdefault((one.encoder, one.tokenizer), []).append(table)
        else:
            total += task.computed_tokens(table)
    for tables in groups.values():
        total += sum(int(lengths(pa.table({"input_ids": one.input_ids})).sum()) for one in passes_of(tables))
    return total
