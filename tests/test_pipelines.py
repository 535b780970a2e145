"""Every job file runs as it stands, on a slice of its corpus, and gives what Python gives, row by row."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlmr_ray import pipeline
from xlmr_ray.batch.job import check_job, read_job
from xlmr_ray.batch.ledger.results import read_results, result_files
from xlmr_ray.batch.run import run_job

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "pipelines").glob("*.yaml"))
ROWS = 24


def slice_of(folder: Path, target: Path, twice: int) -> Path:
    """Every so many-th row of a corpus, the first of them `twice`."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((ROOT / folder).glob("*.parquet")))
    target.mkdir()
    places = np.arange(0, len(table), len(table) // ROWS)[:ROWS]
    pq.write_table(table.take(np.concatenate([places, places[:twice]])), target / "slice.parquet")
    return target


def on_slice(path: Path, tmp_path: Path, twice: int = 0) -> dict:
    content = read_job(path)
    content["input"]["path"] = str(slice_of(Path(content["input"]["path"]), tmp_path / "in", twice))
    content["output"]["path"] = str(tmp_path / "out")
    content["cluster"] = {**content.get("cluster", {}), "encoders": 1}
    return content


def test_there_is_a_job_for_each_task_that_reads_a_corpus():
    tasks = {task["task"] for path in JOBS for task in read_job(path)["tasks"]}
    assert tasks >= {
        "embedding",
        "text-classification",
        "token-classification",
        "question-answering",
        "rerank",
        "multiple-choice",
        "fill-mask",
        "pseudo-perplexity",
        "zero-shot-classification",
    }


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_job_file_gives_pythons_answers(steps_here, path, tmp_path):
    job = check_job(on_slice(path, tmp_path), str(path))
    outcome = run_job(job, quiet=True)
    assert outcome.manifest.rows_in == ROWS
    assert outcome.manifest.rows_error == 0
    rows = pa.concat_tables(pq.read_table(file) for file in result_files(job.output.path)).sort_by("row")
    source = pq.read_table(tmp_path / "in" / "slice.parquet")
    assert rows["id"].to_pylist() == source["id"].to_pylist()
    for task in job.tasks:
        pipe = pipeline(task.task, task.model or job.model, device="cpu", **task.options)
        columns = {role: getattr(job.input, role) for role in pipe.task.roles}
        records = source.select(list(columns.values())).rename_columns(list(columns)).to_pylist()
        wanted = pipe.table(records)
        prefix = f"{task.name or task.task}_".replace("-", "_") if len(job.tasks) > 1 else ""
        assert wanted.num_columns > 1
        for name in wanted.column_names:
            assert rows[prefix + name].to_pylist() == wanted[name].to_pylist(), name  # to the last bit


@pytest.mark.parametrize(
    ("script", "job", "arguments"),
    [
        ("filter_by_perplexity", "score-perplexity", ["--keep", "0.5"]),
        (
            "deduplicate",
            "embed",
            ["--methods", "exact,minhash,embedding", "--jaccard", "0.9", "--cosine", "0.9999"],
        ),
    ],
)
def test_composed_pipelines(steps_here, script, job, arguments, tmp_path):
    content = on_slice(ROOT / "pipelines" / f"{job}.yaml", tmp_path, twice=5)
    if script == "deduplicate":  # goes on with a job that is done; a command of docs/deduplicate.md begins with it
        run_job(check_job(content, job), quiet=True)
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(content), "utf-8")  # which is YAML
    command = [sys.executable, ROOT / "pipelines" / f"{script}.py", file, *arguments, "--output", tmp_path / "found"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = pa.concat_tables(pq.read_table(file) for file in result_files(content["output"]["path"]))
    parts = list((tmp_path / "found").glob("**/*.parquet"))
    found = pa.concat_tables(pq.read_table(part) for part in parts) if parts else None
    if script == "deduplicate":
        assert found is not None
        assert found["method"].to_pylist() == ["exact"] * 5
        assert found.select(["row", "duplicate_of_row"]).to_pydict() == {
            "row": list(range(ROWS, ROWS + 5)),
            "duplicate_of_row": list(range(5)),
        }
        assert (
            found["source"].to_pylist() == found["duplicate_of_source"].to_pylist() == [rows["source"][0].as_py()] * 5
        )
    else:
        assert found is not None
        by_language: dict[str, list[float]] = {}
        for language, value in zip(rows["lang"].to_pylist(), rows["perplexity"].to_pylist(), strict=True):
            by_language.setdefault(language, []).append(value)
        wanted = [v for values in by_language.values() for v in values if v <= np.quantile(values, 0.5)]
        assert sorted(found["perplexity"].to_pylist()) == pytest.approx(sorted(wanted))


def test_the_label_loop(steps_here, tmp_path, capsys):
    """From labels to scored rows; what is above its threshold is as often right as was asked for. See the script."""
    runpy.run_path(str(ROOT / "pipelines" / "label_loop.py"))["label_loop"](tmp_path, service=False)
    said = capsys.readouterr().out
    assert [line.split()[2] for line in said.splitlines() if line.startswith("$ ")] == [
        "finetune", "calibrate", "evaluate", "run", "report",
    ]  # fmt: skip
    labelled, rest = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("held", "rest"))
    assert (len(labelled), set(labelled["id"].to_pylist()) & set(rest["id"].to_pylist())) == (80, set())
    rows = pa.concat_tables(pq.read_table(file) for file in result_files(tmp_path / "scored"))
    assert len(rows) == len(rest)
    above = rows.filter(pa.array([bool(one) for one in rows["above"].to_pylist()]))
    assert len(above) > 100
    right = np.array(above["label"].to_pylist()) == np.array(above["family"].to_pylist())
    assert right.mean() >= 0.8
    assert (tmp_path / "report" / "report.html").exists()


def test_the_published_rows_as_a_dataset(ray_session, steps_here, tmp_path):
    job = check_job(on_slice(ROOT / "pipelines" / "embed.yaml", tmp_path), "embed")
    run_job(job, quiet=True)
    assert read_results(job.output.path).count() == ROWS
    assert read_results(job.output.path, errors=True).count() == 0
