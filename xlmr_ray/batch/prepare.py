"""What is settled before a cluster is asked for: where the output goes, inputs and checkpoints, the plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from xlmr_ray.batch.cluster import on_gpu
from xlmr_ray.batch.identity import job_identity, run_dtype, run_id
from xlmr_ray.batch.incremental import Next, limited_inputs, plan_next, planned
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.lake.sink import check_sink
from xlmr_ray.batch.ledger.merge import check_mergeable
from xlmr_ray.batch.plan import Plan, Unplanned, begin_plan, check_quantization, columns_of, task_recipes
from xlmr_ray.batch.ranges import unmeasured
from xlmr_ray.batch.shard_rows import shard_bytes, shard_rows
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import Recipe
from xlmr_ray.batch.stages.reuse import rows_before
from xlmr_ray.batch.store.base import NoConditionalWrites, Store
from xlmr_ray.batch.store.filesystem import reading
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.text.plural import plural, some
from xlmr_ray.text.redact import clean_url


def checked_store(url: str, check: Callable[[Store], None], *, at_least_once: bool) -> Store:
    """The output's store, `check`ed. One without conditional writes is refused, or used all the same where the user
    says so.
    """
    store = open_store(url)
    try:
        check(store)
    except NoConditionalWrites:
        if not at_least_once:
            raise
        store = open_store(url, at_least_once=True)
        check(store)
    return store


@dataclass(frozen=True)
class PreparedRun:
    """All that is settled before a cluster is asked for: the plan, what the actors need to know, the files left out,
    the hash of the job's identity. `found` is what an incremental run is in its chain; where nothing is new, the
    plan is that of the last run. Of a run that is `unplanned` the plan is without shards.
    """

    plan: Plan
    recipe: Recipe
    files: int
    ignored: tuple[str, ...]
    job: str
    found: Next | None = None
    unplanned: Unplanned | None = None


def prepare_run(job: Job, store: Store, *, early: bool = False) -> PreparedRun:
    """Finds inputs and checkpoints, and makes the plan or reads the one that the run has; one that takes long is left
    to who scores its shards `early`. Raises UserError for what is wrong.
    """
    check_quantization(job)
    recipes = task_recipes(job)
    if job.output.table is not None:
        check_sink(job.output.table, (bound_task(recipe).schema for recipe in recipes), store)
    if job.output.compact:
        check_mergeable(store)
    columns = columns_of(job, recipes)
    with reading(", ".join(map(clean_url, job.input.path))):
        found = find_inputs(
            job.input.path,
            format=job.input.format,
            output=job.output.path,
            version=job.input.version,
            columns=columns,
        )
        what = job_identity(job, recipes, columns)
        inputs: Sequence[InputFile] = found.inputs
        upon: Next | None = None
        unplanned: Unplanned | None = None
        size = partial(shard_bytes, job, recipes, columns)
        # A table's or repository's files are written anew, so what is gone of them is in others, or removed.
        drop = job.input.deleted == "drop" or any(one.table for one in inputs)
        if job.incremental and job.input.limit is None:
            upon = plan_next(
                store,
                what,
                job.name,
                columns,
                inputs,
                drop=drop,
                shard_rows=shard_rows(job, recipes),
                shard_bytes=size,
                readers=job.input.readers,
                ignored=found.ignored,
                max_drift=job.errors.max_drift,
            )
        elif job.incremental:
            whole = {name: value for name, value in what.items() if name != "limit"}
            inputs, upon = limited_inputs(store, whole, inputs, drop=drop)
        if upon is None:
            rows = shard_rows(job, recipes)
            begun = begin_plan(
                store, job, recipes, columns, inputs, shard_rows=rows, shard_bytes=size, ignored=found.ignored
            )
            # What is measured over a sample of the whole input waits for the whole plan.
            if isinstance(begun, Plan):
                plan = begun
            elif early and not unmeasured(recipes):
                plan, unplanned = begun.so_far(), begun
            else:
                plan = begun.write()
        else:
            plan = planned(store, upon)
    device = job.engine.device
    engine = replace(
        job.engine.settings,
        dtype=run_dtype(job.engine),
        device="cuda" if device == "auto" and on_gpu(device) else device,  # not the CPU where a GPU is out of order
    )
    recipe = Recipe(
        plan.run_id,
        store,
        columns,
        job.input.readers,
        recipes,
        engine,
        score_empty=job.errors.empty == "score",
        timeout=job.errors.timeout,
        max_row_bytes=job.input.max_row_bytes,
        kept=plan.kept,
        pre_tokenizer=job.engine.pre_tokenizer,
        reuse=job.reuse,
        before=rows_before(store, plan.run_id) if job.reuse and upon is not None and upon.plan is not None else {},
    )
    return PreparedRun(plan, recipe, len(plan.shards.inputs), tuple(found.ignored), run_id(what), upon, unplanned)


def describe(prepared: PreparedRun, committed: int) -> str:
    """What a launch begins with; so many shards are `committed` already."""
    plan = prepared.plan
    files, shards = plural(prepared.files, "file"), plural(len(plan.shards), "shard")
    text = f"run {plan.run_id}: {plural(plan.rows, 'document')} of {files} in {shards}"
    if tables := sorted({one.table for one in plan.shards.inputs} - {""}):
        text += f"; {some(tables)}"
    if prepared.found and prepared.found.changes:
        text += f"; {prepared.found.changes}"
    if prepared.found and prepared.found.withdrawn:
        changed = some(sorted(prepared.found.withdrawn))
        text += f"; changed or gone since it was planned, so left to the next run: {changed}"
    if committed:
        text += f"; {committed:,} are committed already, going on from there"
    if prepared.ignored:
        text += f"; not read, no known ending: {some(prepared.ignored)}"
    if plan.dead:
        text += f"; {plural(len(plan.dead), 'file')} cannot be read: {some([letter.message for letter in plan.dead])}"
    return text
