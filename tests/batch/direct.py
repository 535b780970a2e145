"""A job's run in this process, without Ray: the same plan, steps, records and manifest."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tests.steps_here import here
from xlmr_ray.batch.job import Job, check_job
from xlmr_ray.batch.ledger.manifest import Manifest
from xlmr_ray.batch.ledger.results import iter_files
from xlmr_ray.batch.run import run_job


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
    with here():
        return run_job(job, quiet=True).manifest


def rows_of(output, *, errors=False) -> list[dict]:
    files = list(iter_files(str(output), errors=errors))
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pylist() if files else []
