"""A job's run in this process, without Ray: the same plan, steps, records and manifest."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from xlmr_ray.batch.incremental import publish_found
from xlmr_ray.batch.job import Job, check_job
from xlmr_ray.batch.ledger.manifest import Manifest, finish
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import committed_shards
from xlmr_ray.batch.ledger.results import iter_files
from xlmr_ray.batch.observe.telemetry import Watch
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.run import Run, check_errors, commit_dead, compare_with_table
from xlmr_ray.batch.stages.block import raise_failure, to_block
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.recipe import shard_to_json
from xlmr_ray.batch.stages.shard_cost import Committed
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.stages.write import Write
from xlmr_ray.batch.store.open import open_store


def job_of(model, folder, output, *, max_fraction=1.0, task="text-classification", **more) -> Job:
    content = {
        "model": str(model),
        "input": {"path": str(folder), **more},
        "tasks": [task],
        "output": {"path": str(output)},
        "cluster": {"shard_rows": 40},
        "errors": {"max_fraction": max_fraction, "empty": "score"},
    }
    return check_job(content, "test")


def run_directly(job: Job) -> Manifest:
    """To the published table. Raises as `run_job` does."""
    store = open_store(job.output.path)
    prepared = prepare_run(job, store)
    plan = prepared.plan
    figures = Figures(plan.rows, len(plan.shards) + len(plan.dead))
    for file in plan.dead:
        figures.add(commit_dead(store, plan.run_id, file))
    check_errors(job, plan, figures, "they are in errors/")
    steps = [Tokenize(prepared.recipe), Encode(prepared.recipe), Write(prepared.recipe)]
    done = set(committed_shards(store, plan.run_id))
    for shard in (one for one in plan.shards if one.id not in done):
        block = to_block(shard_to_json(shard), {})
        for step in steps:
            block = step(block)
        (row,) = block.to_pylist()
        raise_failure(row)
        figures.add(Committed.from_row(row).record)
        check_errors(job, plan, figures, "they are in errors/")
    console = Console(quiet=True)
    run = Run(job, store, prepared, figures, console, quiet=True)
    compare_with_table(run, Watch(job, store, plan.run_id, console, None))
    manifest = finish(store, plan.run_id, plan.ids())
    if prepared.found is not None:
        publish_found(store, prepared.found, started=time.time())
    else:
        publish(store, plan.run_id, started=time.time(), job=prepared.job)
    return manifest


def rows_of(output, *, errors=False) -> list[dict]:
    files = list(iter_files(str(output), errors=errors))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pylist() if files else []
