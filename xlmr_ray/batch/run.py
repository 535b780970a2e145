"""One run of a job: plan, take its lease, stream the shards that have no record through the actors, finish, publish."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console

from xlmr_ray.batch.cluster import (
    connected_if_there,
    on_gpu,
    remote,
)
from xlmr_ray.batch.done import committed_now, earlier
from xlmr_ray.batch.incremental import Changes, publish_found
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.lake.sink import commit_published
from xlmr_ray.batch.ledger.lease import WAIT, leased
from xlmr_ray.batch.ledger.manifest import Manifest, finish, read_manifest
from xlmr_ray.batch.ledger.merge import merge_table
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.observe.code_version import code_version
from xlmr_ray.batch.observe.drift import Drift, leave_drift
from xlmr_ray.batch.observe.launches import last_launch
from xlmr_ray.batch.observe.telemetry import Watch, watched
from xlmr_ray.batch.prepare import checked_store, describe, prepare_run
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.score import Run, TooManyErrors, first_machine, score
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.while_planned import score_while_planned
from xlmr_ray.batch.workers import mapped
from xlmr_ray.engine.cpu_precision import kernels_hint, precision_hint
from xlmr_ray.errors import Interrupted, JobFailed
from xlmr_ray.model.kernels.library import cpu_capabilities
from xlmr_ray.text.plural import plural


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
            prepared = prepare_run(job, store, early=True)
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


def run_prepared(run: Run, *, started: float, wait: float) -> tuple[RunOutcome, bool]:
    """One run to its end, published. Returns also whether that is all; see `incremental`."""
    store, name, found = run.store, run.plan.run_id, run.prepared.found
    models = {task.model: task.weights for task in run.prepared.recipe.tasks}
    rows = None if run.prepared.unplanned else run.plan.rows
    with watched(run.job, store, name, run.console, rows=rows, files=run.prepared.files, models=models) as watch:
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
    store, prepared = run.store, run.prepared
    try:
        if prepared.unplanned is not None:
            if not run.quiet:
                run.say(f"run {run.plan.run_id}: {plural(prepared.files, 'file')}; scored as they are planned")
            run = run.with_plan(score_while_planned(run, prepared.unplanned, check, watch))
        plan, prepared = run.plan, run.prepared
        done = earlier(store, plan, run.figures, prepared.found.withdrawn if prepared.found else frozenset())
        if not run.quiet:
            run.say(describe(prepared, run.figures.shards_before))
            engine = run.job.engine
            if not on_gpu(engine.device) and not remote(run.job.cluster.address):
                there = cpu_capabilities()
                for hint in (
                    precision_hint(prepared.recipe.engine.dtype, engine.quantization, there),
                    kernels_hint(there),
                ):
                    if hint:
                        run.say(hint)
        score(run, done, check, watch)
        compare_with_table(run, watch)
    except (TooManyErrors, Drifted):
        watch.report()
        raise
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the latter
        done_now, name = committed_now(store, run.plan.run_id, run.figures), run.plan.run_id
        raise Interrupted(
            f"stopped: {done_now} of {run.figures.shards_in_all} shards of run {name} are committed; the same command "
            "goes on from there"
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
