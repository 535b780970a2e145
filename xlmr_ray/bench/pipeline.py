"""The same documents through Ray: a run in another process, as users launch it."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.bench.result import Bench, PipelineRun
from xlmr_ray.bench.sample import Sample
from xlmr_ray.errors import JobFailed


def with_pipeline(bench: Bench, job: Job, sample: Sample) -> Bench:
    """The measurement with that of a run of the same documents."""
    return replace(bench, pipeline=run_pipeline(job, sample))


def run_pipeline(job: Job, sample: Sample) -> PipelineRun:
    """Runs the job over the sample's documents, into a folder that is removed again. Raises JobFailed if that fails."""
    with tempfile.TemporaryDirectory(prefix="xlmr-ray-bench-") as name:
        work = Path(name)
        columns = {role: column for role in sample.columns.column_names if (column := job.input.column(role))}
        texts = pa.table({column: sample.columns[role] for role, column in columns.items()})
        pq.write_table(texts, work / "input.parquet", row_group_size=64)
        content = job.model_dump(mode="json", exclude_none=True)
        content["input"] = {"path": [str(work / "input.parquet")], **columns}
        content["output"] = {"path": str(work / "out")}
        content.pop("report", None)
        content.pop("lineage", None)
        (work / "job.yaml").write_text(json.dumps(content), "utf-8")
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "xlmr_ray", "run", str(work / "job.yaml"), "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        ended = time.time()
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["it said nothing"]
            raise JobFailed(f"the measured run failed: {lines[-1].removeprefix('xlmr-ray: ')}")
        store = open_store(str(work / "out"))
        published = current(store)
        assert published is not None
        records = sorted(committed(store, published.run_id), key=lambda record: record.committed_at)
    first, last = records[0].committed_at, records[-1].committed_at
    later = sum(record.stats.tokens for record in records if record.committed_at > first)
    return PipelineRun(
        documents=sample.documents,
        seconds=ended - began,
        first_commit_seconds=first - began,
        steady_tokens_per_second=later / (last - first) if last > first else 0.0,
    )
