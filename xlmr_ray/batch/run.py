"""One run of a job: plan, stream the shards that have no record through the actors, finish, publish."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray
import ray.data
from rich.console import Console

from xlmr_ray.batch.block import raise_failure, to_block
from xlmr_ray.batch.cluster import WRITER_CPUS, Sizes, connected, sizes
from xlmr_ray.batch.commit import ERROR_SCHEMA, commit_shard, committed, new_attempt
from xlmr_ray.batch.finish import Manifest, finish, publish, read_manifest
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.plan import Dead, Plan, columns_of, make_plan, task_recipes
from xlmr_ray.batch.progress import Display, Figures, say
from xlmr_ray.batch.recipe import EngineRecipe, Recipe, shard_to_json
from xlmr_ray.batch.shards import Shard
from xlmr_ray.batch.source import find_inputs
from xlmr_ray.batch.stages import Encode, Tokenize
from xlmr_ray.batch.store import NoConditionalWrites, Store, clean_url, open_store, reading
from xlmr_ray.batch.write import Write
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.tensors import stored_values
from xlmr_ray.errors import JobFailed

# Rows of a shard where the job does not say: seconds of work each, so that a crash costs little and progress shows.
SHARD_ROWS_CPU = 16
SHARD_ROWS_GPU = 8192


@dataclass(frozen=True)
class Outcome:
    """A finished run: its manifest, this launch's figures, whether it is the published one, its store."""

    manifest: Manifest
    figures: Figures
    published: bool
    store: Store


class Interrupted(JobFailed):
    """Stopped by the user. What is committed stays, and the same command goes on from there."""


@dataclass(frozen=True)
class Prepared:
    """All that is settled before a cluster is asked for: the plan, what the actors need to know, and the files left
    out.
    """

    plan: Plan
    recipe: Recipe
    files: int
    ignored: tuple[str, ...]


def prepare(job: Job, store: Store) -> Prepared:
    """Finds inputs and checkpoints, and makes the plan or reads the one that the run has. Raises UserError for what
    is wrong.
    """
    recipes = task_recipes(job)
    columns = columns_of(job, recipes)
    with reading(", ".join(map(clean_url, job.input.path))):
        found = find_inputs(job.input.path, format=job.input.format)
        plan = make_plan(store, job, recipes, columns, found.inputs, shard_rows=shard_rows(job))
    engine = EngineRecipe(
        dtype=job.engine.dtype,
        attn_implementation=job.engine.attn_implementation,
        max_tokens=job.engine.max_tokens,
        device=job.engine.device,
        quantization=job.engine.quantization,
        threads=0,
    )
    recipe = Recipe(
        plan.run_id,
        store,
        columns,
        recipes,
        engine,
        score_empty=job.errors.empty == "score",
        timeout=job.errors.timeout,
        max_row_bytes=job.input.max_row_bytes,
    )
    return Prepared(plan, recipe, len(found.inputs), tuple(found.ignored))


def run_job(job: Job, *, console: Console | None = None, quiet: bool = False, at_least_once: bool = False) -> Outcome:
    """Runs the job to its end. Raises UserError for what is wrong with it, JobFailed for what goes wrong with the
    run.
    """
    console = console or Console(stderr=True)
    started = time.time()
    store = probed(job.output.path, at_least_once=at_least_once)
    prepared = prepare(job, store)
    plan = prepared.plan
    manifest = read_manifest(store, plan.run_id)
    figures = Figures(plan.rows, len(plan.shards) + len(plan.dead))
    if manifest is None:
        done = earlier(store, plan, figures)
        if not quiet:
            say(console, describe(prepared, done))
        try:
            score(job, store, prepared, done, figures, console, quiet=quiet)
        except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the latter
            raise Interrupted(
                f"stopped: {figures.shards_before + figures.shards} of {figures.total_shards} shards of run "
                f"{plan.run_id} are committed; the same command goes on from there"
            ) from None
        manifest = finish(store, plan.run_id, [shard.id for shard in (*plan.shards, *plan.dead)])
    _, published = publish(store, plan.run_id, started=started)
    return Outcome(manifest, figures, published, store)


def score(
    job: Job, store: Store, prepared: Prepared, done: set[str], figures: Figures, console: Console, *, quiet: bool
) -> None:
    """Commits every shard that is not `done`, or raises JobFailed that says why not."""
    plan = prepared.plan
    for file in plan.dead:
        if file.id not in done:
            commit_dead(store, plan.run_id, file)
            figures.add(0, 1, 0, 0)
    check_errors(job, store, plan, figures)
    todo = [shard for shard in plan.shards if shard.id not in done]
    if not todo:
        return
    with connected(job.cluster.address), Display(figures, console, quiet=quiet) as display:
        encoders = {(task.encoder, task.tokenizer): task.model for task in prepared.recipe.tasks}
        weights = sum(4 * stored_values(model_folder(resolve(model))) for model in encoders.values())
        size = sizes(job.cluster, job.engine.device, weights)
        recipe = replace(prepared.recipe, engine=replace(prepared.recipe.engine, threads=size.threads))
        display.note(f"starting {size.tokenizers} tokenizer and {size.encoders} encoder actors")
        try:
            for row in stream(todo, recipe, size).iter_rows():
                raise_failure(row)
                figures.add(row["rows_ok"], row["rows_error"], row["tokens"], row["padded"])
                display.update()
                check_errors(job, store, plan, figures)
        except ray.exceptions.RayError as error:
            raise cause(error) from error


def probed(url: str, *, at_least_once: bool) -> Store:
    """The output's store. One without conditional writes is refused, or used all the same where the user says so."""
    store = open_store(url)
    try:
        store.probe()
    except NoConditionalWrites:
        if not at_least_once:
            raise
        store = open_store(url, at_least_once=True)
        store.probe()
    return store


def shard_rows(job: Job) -> int:
    """As asked, or by the device that the job names; the plan is made before a cluster is looked for."""
    if job.cluster.shard_rows != "auto":
        return job.cluster.shard_rows
    import torch

    on_gpu = job.engine.device.startswith("cuda") or (job.engine.device == "auto" and torch.cuda.is_available())
    return SHARD_ROWS_GPU if on_gpu else SHARD_ROWS_CPU


def earlier(store: Store, plan: Plan, figures: Figures) -> set[str]:
    """The shards that earlier launches committed, counted in the figures."""
    done = set()
    for record in committed(store, plan.run_id):
        done.add(record.shard)
        figures.rows_before += record.rows_in
        figures.shards_before += 1
        figures.errors_before += record.rows_error
    return done


def describe(prepared: Prepared, done: set[str]) -> str:
    plan = prepared.plan
    text = f"run {plan.run_id}: {plan.rows:,} documents of {prepared.files:,} files in {len(plan.shards):,} shards"
    if done:
        text += f"; {len(done):,} are committed already, going on from there"
    if prepared.ignored:
        text += f"; not read, no known ending: {some(prepared.ignored)}"
    if plan.dead:
        text += f"; {len(plan.dead):,} files cannot be read: {some([letter.message for letter in plan.dead])}"
    return text


def some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def commit_dead(store: Store, run_id: str, file: Dead) -> None:
    """A file that cannot be read, as an error row at row -1. A shard of its own, so that it goes when the file does."""
    row = {"source": file.input.key, "row": -1, "id": "", "code": file.code, "message": file.message}
    commit_shard(
        store,
        run_id,
        file.id,
        attempt=new_attempt(),
        rows=pa.table({}),
        errors=pa.Table.from_pylist([row], schema=ERROR_SCHEMA),
        rows_in=1,
        source_key=file.input.key,
        source_etag=file.input.etag,
    )


def check_errors(job: Job, store: Store, plan: Plan, figures: Figures) -> None:
    """Raises JobFailed as soon as there are more error rows than the job allows of all its rows."""
    errors, most = figures.errors_before + figures.rows_error, job.errors.max_fraction * plan.rows
    if errors > most:
        raise JobFailed(
            f"{errors:,} of {plan.rows:,} rows are errors ({errors / plan.rows:.1%}), errors.max_fraction allows "
            f"{job.errors.max_fraction:.1%}: nothing is published; they are in {store.url(f'errors/{plan.run_id}/')}; "
            "mend the input, or raise errors.max_fraction and run again to go on"
        )


def stream(todo: Sequence[Shard], recipe: Recipe, size: Sizes) -> ray.data.Dataset:
    """The lazy pipeline: a row of figures for each shard, as they are committed."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = None  # a block is a shard; never split it
    blocks = [to_block(shard_to_json(shard), {}) for shard in todo]
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            Tokenize,
            fn_constructor_args=(recipe,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size.tokenizers),
            num_cpus=size.tokenizer_cpus,
        )
        .map_batches(
            Encode,
            fn_constructor_args=(recipe,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size.encoders),
            num_cpus=size.encoder_cpus,
            num_gpus=size.encoder_gpus,
        )
        .map_batches(
            Write,
            fn_constructor_args=(recipe,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=size.writers),
            num_cpus=WRITER_CPUS,
        )
    )


def cause(error: BaseException) -> JobFailed:
    """What Ray itself could not do, in one line; what our steps say comes as data (see `block.guarded`)."""
    while (inner := getattr(error, "cause", None)) is not None and isinstance(inner, BaseException):
        error = inner
    lines = str(error).strip().splitlines() or ["no message"]
    return JobFailed(f"the cluster failed: {type(error).__name__}: {lines[0]}; run the job again to go on")
