"""The shards of a run that are left: through the actors, and committed."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from xlmr_ray.batch.cluster import Resources, Sizes, cluster_resources, cluster_sizes, connected, remote
from xlmr_ray.batch.done import Done
from xlmr_ray.batch.first_machine import await_first_machine
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.shard_table import ShardTable
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.gathered import Gathered
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, Record, new_attempt
from xlmr_ray.batch.observe.telemetry import Watch
from xlmr_ray.batch.plan import Dead, Plan
from xlmr_ray.batch.prepare import PreparedRun
from xlmr_ray.batch.progress import Figures, show_figures
from xlmr_ray.batch.ranges import known_ranges, with_measured_ranges
from xlmr_ray.batch.repeats import Keeping, keeping
from xlmr_ray.batch.shard_rows import held_bytes
from xlmr_ray.batch.stages.block import raise_failure
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.shard_cost import WHOLE_RECORD, Committed
from xlmr_ray.batch.stages.shared_results import SharedResults
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.stream import rows_of, stream
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.tensors import stored_values
from xlmr_ray.errors import JobFailed
from xlmr_ray.text.plural import some
from xlmr_ray.text.progress_line import ProgressLine, say


@dataclass(frozen=True)
class Run:
    """A launch of one run: the job, where it writes, what was settled before, what it counts and where it says so.
    `quiet`: no progress is shown.
    """

    job: Job
    store: Store
    prepared: PreparedRun
    figures: Figures
    console: Console
    quiet: bool = False

    @property
    def plan(self) -> Plan:
        return self.prepared.plan

    @property
    def limited(self) -> bool:
        return self.job.input.limit is not None

    def with_plan(self, plan: Plan) -> "Run":
        """The run when it is planned; its figures have the plan's totals."""
        self.figures.total_rows, self.figures.total_shards = plan.rows, len(plan.shards) + len(plan.dead)
        self.figures.planning = ""
        return replace(self, prepared=replace(self.prepared, plan=plan, unplanned=None))

    def say(self, text: str) -> None:
        say(self.console, text)

    def check_errors(self) -> None:
        where = self.store.url(f"errors/{self.plan.run_id}/")
        check_errors(self.job, self.plan, self.figures, f"they are in {where}")


class TooManyErrors(JobFailed):
    """More rows are errors than the job allows."""


def score(run: Run, done: Done, check: Callable[[], None] = lambda: None, watch: Watch | None = None) -> None:
    """Commits every shard that is not `done`, or raises JobFailed that says why not."""
    plan, prepared, figures = run.plan, run.prepared, run.figures
    for file in plan.dead:
        if file.id not in done.files:
            figures.add(commit_dead(run.store, plan.run_id, file))
    run.check_errors()
    known = known_ranges(prepared.recipe, prepared.found.after if prepared.found else None)
    todo = np.flatnonzero(~done.shards)
    if not len(todo):
        return

    def still_good() -> None:
        check()
        run.check_errors()

    with connected(run.job.cluster.address), ProgressLine(run.console, "docs", quiet=run.quiet) as line:
        recipe, size = begin(run, known, plan.shards, todo, line, watch)
        shards = (plan.shards[int(at)] for at in todo)
        with contextlib.closing(rows_of(stream(shards, len(todo), recipe, size))) as rows:
            changed = Counter(follow_rows(run, rows, line, watch, still_good))
    if changed:
        raise JobFailed(
            f"{some(sorted(changed))}: {changed.total():,} shards of {len(changed):,} inputs could not be scored, all "
            f"others of run {plan.run_id} are committed; nothing is published"
        )


def begin(
    run: Run,
    recipe: Recipe,
    shards: ShardTable,
    left: NDArray[np.int64],
    line: ProgressLine,
    watch: Watch | None,
    *,
    more: int = 0,
) -> tuple[Recipe, Sizes]:
    """All that stands before the stream of the shards that are `left`, by index, and so many `more`, on the connected
    cluster: the recipe with what is settled there, and the sizes.
    """
    first_machine(run.job, run.console)
    size, kept = sizes_of(run.job, recipe, shards, left, cluster_resources(), more=more)
    recipe = replace(recipe, threads=size.threads, gpus=size.encoder_gpus)
    if watch is not None:
        watch.launched(size, run.figures)
    recipe = with_measured_ranges(recipe, shards, size, line.say)
    if kept.bytes:
        line.say(f"repeats: {kept}")
        recipe = replace(recipe, known=SharedResults.start(kept.bytes))
    line.say(f"starting {size}")
    return recipe, size


def follow_rows(
    run: Run, rows: Iterator[dict[str, Any]], line: ProgressLine, watch: Watch | None, check: Callable[[], object]
) -> Iterator[str]:
    """Counts and shows what the stream's `rows` say is committed, keeps copies of its records, and calls `check` after
    each. Gives for each shard that was not committed, since its input has changed, what changed.
    """
    copies = Gathered(run.store, run.plan.run_id)
    for row in rows:
        try:
            raise_failure(row)
        except InputChanged as error:
            yield str(error)
        else:
            committed = Committed.from_row(row)
            run.figures.add(committed.record)
            copies.add(committed.record, row[WHOLE_RECORD])
            if watch is not None:
                watch.shard(committed)
            show_figures(line, run.figures)
        check()
    copies.write()


def first_machine(job: Job, console: Console) -> None:
    """Waits for it where the cluster is another's and has none."""
    if remote(job.cluster.address):
        await_first_machine(job, lambda text: say(console, text))


def sizes_of(
    job: Job, recipe: Recipe, shards: ShardTable, left: NDArray[np.int64], there: Resources, *, more: int = 0
) -> tuple[Sizes, Keeping]:
    """Of a launch that scores the shards that are `left`, by index, and so many `more`: its actors, beside the results
    that are kept.
    """
    kept = keeping(job, recipe, shards, left, there)
    beside = replace(there, memory=there.memory - kept.memory)
    memory = memory_of(recipe, shards)
    return cluster_sizes(beside, job.cluster, job.engine.device, memory, max(1, len(left) + more)), kept


def memory_of(recipe: Recipe, shards: ShardTable) -> int:
    """Bytes of an encoder's process beside those that any takes: the encoders' weights, in float32, and the results of
    the largest shard.
    """
    encoders = {(task.encoder, task.tokenizer): task.model for task in recipe.tasks}
    weights = sum(4 * stored_values(model_folder(resolve(model))) for model in encoders.values())
    return weights + held_bytes(recipe.tasks, shards.most_rows)


def commit_dead(store: Store, run_id: str, file: Dead) -> Record:
    """A file that cannot be read, as one error row at row -1, and the number of rows that are lost with it beside that.
    It is a shard, so that it goes when the file does.
    """
    row = {"source": file.input.key, "row": -1, "id": "", "code": file.code, "message": file.message}
    record, _ = commit_shard(
        store,
        run_id,
        file.id,
        attempt=new_attempt(),
        rows=pa.table({}),
        errors=pa.Table.from_pylist([row], schema=ERROR_SCHEMA),
        rows_in=1,
        source_key=file.input.key,
        source_etag=file.input.etag,
        rows_lost=file.rows - 1,
        lost_estimated=file.estimated,
    )
    return record


def check_errors(job: Job, plan: Plan, figures: Figures, where: str) -> None:
    """Raises JobFailed as soon as there are more errors, lost rows among them, than the job allows of all its rows.
    `where` they are.
    """
    errors, most = figures.errors_before + figures.rows_error, job.errors.max_fraction * plan.rows
    if errors > most:
        raise TooManyErrors(
            f"{errors:,} of {plan.rows:,} rows are errors ({errors / plan.rows:.1%}), errors.max_fraction allows "
            f"{job.errors.max_fraction:.1%}: nothing is published; {where}; "
            "mend the input, or raise errors.max_fraction and run again to go on"
        )
