"""LoRA adapters that a job names: a column set for each, as Python has them, in a run of their own name."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.direct import rows_of, run_directly
from tests.model.adapters import save_adapter
from xlmr_ray import pipeline
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.plan import task_recipes
from xlmr_ray.errors import UserError

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]


def content(folder: Path, **more: Any) -> dict[str, Any]:
    tasks = [{"task": "text-classification"}, *(
        {"task": "text-classification", "name": name, "adapter": name} for name in "ab"
    )]  # fmt: skip
    return {
        "model": "embedded:mini",
        "adapters": {name: str(folder / name) for name in "ab"},
        "input": {"path": str(folder / "in.parquet")},
        "tasks": tasks,
        "output": {"path": str(folder / "out")},
        "engine": {"device": "cpu"},
        **more,
    }


def test_a_job_of_a_base_and_two_adapters(mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLMR_RAY_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate("ab"):
        save_adapter("XLMRobertaForSequenceClassification", mini, tmp_path / name, seed, task_type="SEQ_CLS")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    job = check_job(content(tmp_path), "test")
    run_directly(job)
    got = rows_of(tmp_path / "out")
    adapters = {name: tmp_path / name for name in "ab"}
    pipe = pipeline("text-classification", "embedded:mini", adapters=adapters, device="cpu", dtype="float32")
    wanted = {name: pipe.table(TEXTS, adapter=name)["score"] for name in "ab"}
    wanted["text_classification"] = pipeline("text-classification", device="cpu").table(TEXTS)["score"]
    for name, scores in wanted.items():
        assert [row[f"{name}_score"] for row in got] == scores.to_pylist()
    assert len({tuple(scores.to_pylist()) for scores in wanted.values()}) == 3
    # One encoder; each adapter decides the run's name.
    recipes = task_recipes(job)
    assert len({one.encoder for one in recipes}) == 1
    assert len({one.weights for one in recipes}) == 3
    merged = task_recipes(check_job(content(tmp_path, merge=True), "test"))
    assert len({one.encoder for one in merged}) == 3


def test_names_that_do_not_meet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no adapter 'c'; under adapters there is: a, b"):
        check_job(content(tmp_path, tasks=[{"task": "embedding", "adapter": "c"}]), "test")
    with pytest.raises(UserError, match="no task names 'b'"):
        check_job(content(tmp_path, tasks=[{"task": "embedding", "adapter": "a"}]), "test")
