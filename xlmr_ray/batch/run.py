"""One run of a job: plan, take its lease, stream the shards that have no record through the actors, finish, publish."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from xlmr_ray.batch.cluster import (
    Resources,
    Sizes,
    cluster_resources,
    cluster_sizes,
    connected,
    connected_if_there,
    on_gpu,
    remote,
)
from xlmr_ray.batch.done import Done, committed_now, earlier
from xlmr_ray.batch.first_machine import await_first_machine
from xlmr_ray.batch.incremental import Changes, publish_found
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.shard_table import ShardTable
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.lake.sink import commit_published
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.lease import WAIT, leased
from xlmr_ray.batch.ledger.manifest import Manifest, finish, read_manifest
from xlmr_ray.batch.ledger.merge import merge_table
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, Record, new_attempt
from xlmr_ray.batch.observe.code_version import code_version
from xlmr_ray.batch.observe.drift import Drift, leave_drift
from xlmr_ray.batch.observe.launches import last_launch
from xlmr_ray.batch.observe.telemetry import Watch, watched
from xlmr_ray.batch.plan import Dead, Plan
from xlmr_ray.batch.prepare import PreparedRun, checked_store, describe, prepare_run
from xlmr_ray.batch.progress import Figures, show_figures
from xlmr_ray.batch.ranges import known_ranges, with_measured_ranges
from xlmr_ray.batch.repeats import Keeping, keeping
from xlmr_ray.batch.shard_rows import held_bytes
from xlmr_ray.batch.stages.block import raise_failure
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.shard_cost import Committed
from xlmr_ray.batch.stages.shared_results import SharedResults
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.stream import rows_of, stream
from xlmr_ray.batch.workers import mapped
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.tensors import stored_values
from xlmr_ray.engine.cpu_precision import cpu_capabilities, precision_hint
from xlmr_ray.errors import Interrupted, JobFailed
from xlmr_ray.text.plural import plural, some
from xlmr_ray.text.progress_line import ProgressLine, say


@dataclass(frozen=True)
class RunOutcome:
    """A finished run: its manifest, this launch's figures, whether it is the published one, its store; what an
    incremental launch found to be new; whether the job is limited to its first rows.
    """

    manifest: Manifest
    figures: Figures
    published: bool
    store: Store
    changes: Changes | None = None
    limited: bool = False


class Drifted(JobFailed):
    """What was scored is further from what was scored before than the job allows."""


class TooManyErrors(JobFailed):
    """More rows are errors than the job allows."""


def run_job(
    job: Job,
    *,
    console: Console | None = None,
    quiet: bool = False,
    at_least_once: bool = False,
    wait: float = WAIT,
) -> RunOutcome:
    """Runs the job to its end. Where another launch of the same run is at it, waits for that one first, for `wait`
    seconds at most.

    Raises UserError for what is wrong with the job, JobFailed for what goes wrong with the run.
    """
    console = console or Console(stderr=True)
    started = time.time()
    store = checked_store(job.output.path, lambda store: store.probe(), at_least_once=at_least_once)
    with connected_if_there(job.cluster.address):
        before: RunOutcome | None = None
        if job.engine.device == "auto" or job.engine.dtype == "auto":
            # What an encoder computes in follows from the machines, and is part of what the run is.
            first_machine(job, console)
        while True:
            prepared = prepare_run(job, store)
            plan = prepared.plan
            figures = Figures(plan.rows, len(plan.shards) + len(plan.dead))
            run = Run(job, store, prepared, figures, console, quiet)
            outcome, settled = run_prepared(run, started=started, wait=wait)
            if settled:
                nothing = outcome.changes is not None and not outcome.changes.any
                return replace(before, changes=outcome.changes) if before and nothing else outcome
            if not quiet:
                run.say(f"run {plan.run_id} is finished; looking for what is new since it was planned")
            before = outcome


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

    def say(self, text: str) -> None:
        say(self.console, text)

    def check_errors(self) -> None:
        where = self.store.url(f"errors/{self.plan.run_id}/")
        check_errors(self.job, self.plan, self.figures, f"they are in {where}")


def run_prepared(run: Run, *, started: float, wait: float) -> tuple[RunOutcome, bool]:
    """One run to its end, published. Returns also whether that is all; see `incremental`."""
    store, name, found = run.store, run.plan.run_id, run.prepared.found
    models = {task.model: task.weights for task in run.prepared.recipe.tasks}
    with watched(
        run.job, store, name, run.console, rows=run.plan.rows, files=run.prepared.files, models=models
    ) as watch:
        manifest = read_manifest(store, name)
        anew = manifest is None
        if manifest is None:
            with leased(store, name, wait=wait, tell=run.say) as lease:
                manifest = read_manifest(store, name) or drive(run, lease.check, watch)
        settled = True
        if found is not None:
            published, settled = publish_found(store, found, started=started, merge=partial(merge_small, run, watch))
        else:
            merge_small(run, watch, name)
            _, published = publish(store, name, started=started, job=run.prepared.job, limited=run.limited)
        if run.job.output.table is not None:
            commit_published(store, run.job.output.table)
        watch.finished(manifest, anew=anew)
    changes = found.changes if found else None
    return RunOutcome(manifest, run.figures, published, store, changes, limited=run.limited), settled


def merge_small(run: Run, watch: Watch, run_id: str) -> None:
    """Merges the small files of the table of a run that is about to be published, where the job asks for it. A run is
    published without, where that fails.
    """
    if run.job.output.compact:
        with watch.trying(f"files are not merged; `xlmr-ray compact {run.job.output.path}` merges them"):
            found = merge_table(run.store, run_id, mapped)
            if found.after < found.before and not run.quiet:
                run.say(str(found))


def drive(run: Run, check: Callable[[], None], watch: Watch) -> Manifest:
    """From whatever is committed to the run's manifest. `check` raises where another driver has taken over."""
    store, plan, prepared = run.store, run.plan, run.prepared
    done = earlier(store, plan, run.figures, prepared.found.withdrawn if prepared.found else frozenset())
    if not run.quiet:
        run.say(describe(prepared, done))
        engine = run.job.engine
        hint = precision_hint(prepared.recipe.engine.dtype, engine.quantization, cpu_capabilities())
        if hint and not on_gpu(engine.device) and not remote(run.job.cluster.address):
            run.say(hint)
    try:
        score(run, done, check, watch)
        compare_with_table(run, watch)
    except (TooManyErrors, Drifted):
        watch.report()
        raise
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the latter
        raise Interrupted(
            f"stopped: {committed_now(store, plan.run_id, run.figures)} of {run.figures.total_shards:,} shards of run "
            f"{plan.run_id} are committed; the same command goes on from there"
        ) from None
    check()
    job_file = last_launch(store, plan.run_id)
    return finish(store, plan.run_id, plan.ids(), code=code_version(), job_file=job_file)


def compare_with_table(run: Run, watch: Watch) -> None:
    """What an incremental run has scored against what was scored before it. Raises Drifted past the job's bound."""
    found = run.prepared.found
    if found is None or found.after is None:
        return
    bound = run.job.errors.max_drift
    with watch.trying("no comparison with the table before") if bound is None else contextlib.nullcontext():
        drift = leave_drift(run.store, run.plan.run_id, found.after)
        watch.drift(drift)
        check_drift(drift, bound)


def check_drift(drift: Drift, bound: float | None) -> None:
    """Raises Drifted that names what has changed most."""
    if past := drift.past(bound):
        raise Drifted(
            f"{past[0]}; {plural(len(past), 'spread')} of {len(drift.shifts)} past errors.max_drift {bound:g}: nothing "
            "is published; mend the new input, or raise errors.max_drift, and run again to go on"
        )


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
    changed: Counter[str] = Counter()
    with connected(run.job.cluster.address), ProgressLine(run.console, "docs", quiet=run.quiet) as line:
        first_machine(run.job, run.console)
        size, kept = sizes_of(run.job, prepared.recipe, plan.shards, todo, cluster_resources())
        recipe = replace(known, threads=size.threads, gpus=size.encoder_gpus)
        if watch is not None:
            watch.launched(size, figures)
        recipe = with_measured_ranges(recipe, plan.shards, size, line.say)
        if kept.bytes:
            line.say(f"repeats: {kept}")
            recipe = replace(recipe, known=SharedResults.start(kept.bytes))
        line.say(f"starting {size}")
        shards = (plan.shards[int(at)] for at in todo)
        with contextlib.closing(rows_of(stream(shards, len(todo), recipe, size))) as rows:
            for row in rows:
                check()
                try:
                    raise_failure(row)
                except InputChanged as error:
                    changed[str(error)] += 1
                    continue
                committed = Committed.from_row(row)
                figures.add(committed.record)
                if watch is not None:
                    watch.shard(committed)
                show_figures(line, figures)
                run.check_errors()
    if changed:
        raise JobFailed(
            f"{some(sorted(changed))}: {changed.total():,} shards of {len(changed):,} inputs could not be scored, all "
            f"others of run {plan.run_id} are committed; nothing is published"
        )


def first_machine(job: Job, console: Console) -> None:
    """Waits for it where the cluster is another's and has none."""
    if remote(job.cluster.address):
        await_first_machine(job, lambda text: say(console, text))


def sizes_of(
    job: Job, recipe: Recipe, shards: ShardTable, left: NDArray[np.int64], there: Resources
) -> tuple[Sizes, Keeping]:
    """Of a launch that scores the shards that are `left`, by index: its actors, beside the results that are kept."""
    kept = keeping(job, recipe, shards, left, there)
    beside = replace(there, memory=there.memory - kept.memory)
    memory = memory_of(recipe, shards)
    return cluster_sizes(beside, job.cluster, job.engine.device, memory, max(1, len(left))), kept


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
