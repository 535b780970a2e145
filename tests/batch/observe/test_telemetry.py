"""A real run leaves its report, its launches and its lineage: when it ends, and when it has too many errors."""

import json

import pytest

from xlmr_ray import JobFailed
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.observe.report.leave import report_key
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.store.open import open_store


def test_a_run_that_ends_on_errors_and_then_well(steps_here, tmp_path):
    (tmp_path / "in.jsonl").write_text(
        '{"text": "All human beings are born free", "lang": "en"}\n{"text": "", "lang": "en"}\n'
    )
    content = {
        "name": "watched",
        "input": {"path": str(tmp_path / "in.jsonl"), "keep": ["lang", "text"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(tmp_path / "out")},
        "errors": {"max_fraction": 0.1},
        "report": {"price_per_hour": 2},
        "lineage": {"file": str(tmp_path / "events.jsonl")},
    }
    with pytest.raises(JobFailed, match=r"1 of 2 rows are errors"):
        run_job(check_job(content, "watched"), quiet=True)
    store = open_store(str(tmp_path / "out"))
    [run_id] = store.folders("_runs/")

    def report():
        return json.loads(store.get(report_key(run_id, "json"))[0])

    first = report()
    assert (first["state"], first["rows"], first["planned"]) == ("unfinished", 2, 1)
    [error] = first["errors"]
    assert (error["code"], error["examples"]) == ("empty_text", [[str(tmp_path / "in.jsonl"), 1]])

    outcome = run_job(check_job({**content, "errors": {"max_fraction": 1}}, "watched"), quiet=True)
    assert outcome.manifest.run_id == run_id
    second = report()
    assert (second["state"], second["rows_ok"], second["rows_error"]) == ("published", 1, 1)
    assert second["cost"] == pytest.approx(2 * second["active"] / 3600)
    assert second["launches"][0]["job"]["name"] == "watched"
    assert second["devices"][0]["operations"] > 0
    assert list(second["summary"]["groups"]) == ["lang"]
    page = store.get(report_key(run_id))[0].decode()
    assert "published" in page
    assert "born free" not in page
    states = [json.loads(line)["eventType"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert states == ["START", "FAIL", "START", "COMPLETE"]
