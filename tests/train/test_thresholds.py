"""Thresholds keep what was asked for on rows that they have not seen, and are applied the same everywhere."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.batch.direct import job_of, rows_of, run_directly
from tests.train.conftest import LANGUAGES, TEXTS
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch.input.whole import read_whole
from xlmr_ray.checkpoint.calibration import write_calibration
from xlmr_ray.cli import app
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.train.calibrate import calibrate
from xlmr_ray.train.job import DataSection
from xlmr_ray.train.thresholds import Target, target_of, threshold_of

CLASSES = "XLMRobertaForSequenceClassification"
NAMES = {"id2label": {0: "de", 1: "en", 2: "fr"}, "label2id": {"de": 0, "en": 1, "fr": 2}}
TASK = "text-classification"


def drawn(random, count):
    """Scores that are true: of rows with a score of p, p have the label."""
    scores = 1 / (1 + np.exp(1 - random.normal(0, 2, count)))
    return scores.astype(np.float32), random.random(count) < scores


@pytest.mark.parametrize("kind", ["precision", "recall"])
@pytest.mark.parametrize("asked", [0.7, 0.9])
def test_the_share_asked_for_is_kept_on_other_rows(kind, asked):
    scores, has = drawn(np.random.default_rng(0), 100_000)
    kept, found = [], []
    for seed in range(100):
        value = threshold_of("a", *drawn(np.random.default_rng([1, seed]), 2000), Target(kind, asked)).value
        if value is None:
            continue  # nothing is promised then
        share = has[scores >= value].mean() if kind == "precision" else (scores[has] >= value).mean()
        kept.append(share >= asked)
        found.append(share)
    assert len(found) > 50
    assert np.mean(kept) >= 0.88  # 95 % sure, less the chance of 100 draws
    assert np.median(found) < asked + 0.06  # and no more rows are given away for it than it takes


def test_ties_and_few_rows():
    always, never = np.full(40, 0.5, np.float32), np.zeros(40, bool)
    half = np.arange(40) % 2 == 0
    assert threshold_of("a", always, half, Target("precision", 0.9)).value is None  # rows of one score count together
    assert threshold_of("a", always, half, Target("precision", 0.3)).value == 0.5
    assert threshold_of("a", always, never, Target("precision", 0.1)).value is None
    assert threshold_of("a", always, never, Target("recall", 0.1)).value == 0.0
    few = threshold_of("a", always[:20], ~never[:20], Target("precision", 0.9))
    assert few.value is None  # 20 of 20 may be a share of 0.86
    assert threshold_of("a", always[:30], ~never[:30], Target("precision", 0.9)).value == 0.5


@pytest.fixture
def folder(make_checkpoint):
    """Of one label of three, with a threshold for two of them."""
    made = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    scores = pipeline(TASK, made, top_k=None)(TEXTS)
    middle = float(np.median([one["score"] for own in scores for one in own if one["label"] == "de"]))
    write_calibration(made, TASK, {"thresholds": {"de": middle, "en": 0.2, "fr": None}})
    return made


def wanted(own, thresholds):
    return None if thresholds[own["label"]] is None else own["score"] >= thresholds[own["label"]]


def test_python(folder):
    thresholds = json.loads((folder / "calibration.json").read_text())[TASK]["thresholds"]
    every = pipeline(TASK, folder, top_k=None)(TEXTS)
    flat = [one for own in every for one in own]
    assert [one["above"] for one in flat] == [wanted(one, thresholds) for one in flat]
    assert {one["above"] for one in flat} == {True, False, None}
    first = pipeline(TASK, folder)(TEXTS)
    assert first == [own[0] for own in every]
    raw = pipeline(TASK, folder, function_to_apply="none", top_k=None)(TEXTS)
    assert [[one["above"] for one in own] for own in raw] == [[one["above"] for one in own] for own in every]
    (folder / "calibration.json").unlink()
    plain = pipeline(TASK, folder, top_k=None)(TEXTS)
    assert [[{"label": one["label"], "score": one["score"]} for one in own] for own in every] == plain


def test_windows(folder):
    long = [" ".join(TEXTS)] * 2
    every = pipeline(TASK, folder, top_k=None, long="windows", max_length=32)
    thresholds = json.loads((folder / "calibration.json").read_text())[TASK]["thresholds"]
    for own in every(long):
        assert [one["above"] for one in own] == [wanted(one, thresholds) for one in own]
    raw = every(long, function_to_apply="none")
    assert {one["label"]: one["above"] for one in raw[0]} == {one["label"]: one["above"] for one in every(long)[0]}


def test_job(folder, tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    for task, column in ((TASK, None), ({"task": TASK, "top_k": None}, "labels")):
        output = tmp_path / f"out-{column}"
        run_directly(job_of(folder, tmp_path / "texts.parquet", output, task=task))
        rows = sorted(rows_of(output), key=lambda row: row["row"])
        found = [row[column] if column else {name: row[name] for name in ("label", "score", "above")} for row in rows]
        assert found == pipeline(TASK, folder, **({"top_k": None} if column else {}))(TEXTS)


def test_service(folder):
    settings = ServeSettings.model_validate({"models": [{"model": str(folder), "tasks": [TASK]}]})
    service = Service.load(settings)
    try:
        with TestClient(build_app(service, settings)) as client:
            answer = client.post("/tasks/text-classification", json={"inputs": TEXTS})
    finally:
        service.close()
    assert answer.status_code == 200, answer.text
    assert answer.json() == pipeline(TASK, folder, top_k=None)(TEXTS)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [("single_label_classification", LANGUAGES), ("multi_label_classification", [[one] for one in LANGUAGES])],
)
def test_what_the_fit_promises_is_what_is_above(make_checkpoint, tmp_path, problem, labels):
    made = make_checkpoint(CLASSES, problem_type=problem, **NAMES)
    pq.write_table(pa.table({"text": TEXTS * 12, "label": labels * 12}), tmp_path / "rows.parquet")
    section = DataSection(path=[str(tmp_path / "rows.parquet")])
    found = calibrate(TASK, str(made), section, read_whole, options={}, target=Target("recall", 0.5))
    values = json.loads((made / "calibration.json").read_text())[TASK]
    assert values["target"] == {"kind": "recall", "value": 0.5}
    assert ("temperature" in values) == found.better
    every = pipeline(TASK, made, top_k=None)(TEXTS)
    for one in found.thresholds:
        above = [next(x["above"] for x in own if x["label"] == one.label) for own in every]
        assert 12 * sum(above) == one.above
        assert 12 * sum(up and name == one.label for up, name in zip(above, LANGUAGES, strict=True)) == one.right
        assert one.right >= one.rows / 2 == 24


def test_the_command(folder, tmp_path, capsys):
    pq.write_table(pa.table({"text": TEXTS, "label": LANGUAGES}), tmp_path / "rows.parquet")
    words = ["calibrate", TASK, "--model", str(folder), "--data", str(tmp_path / "rows.parquet")]
    app([*words, "--precision", "0.9"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "no threshold is known to keep precision 0.9 of de, en, fr" in said
    assert "at least 29 rows" in said
    app(words, standalone_mode=False)  # what is fitted takes the place of what was there
    assert "above" not in pipeline(TASK, folder)(TEXTS[:1])[0]


def test_what_is_wrong(folder, make_checkpoint, tmp_path):
    with pytest.raises(UserError, match="expected one of them"):
        target_of(precision=0.9, recall=0.9)
    with pytest.raises(UserError, match="--recall: expected a share above 0 and below 1, got 1"):
        target_of(precision=None, recall=1.0)
    with pytest.raises(UserError, match="task rerank: has no thresholds"):
        calibrate("rerank", "x", DataSection(path=["x"]), read_whole, options={}, target=Target("recall", 0.5))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter, beside which no calibration is read"):
        calibrate(TASK, str(tmp_path), DataSection(path=["x"]), read_whole, options={})
    write_calibration(folder, TASK, {"thresholds": {"it": 0.5}})
    with pytest.raises(UserError, match="a threshold for 'it', which is none of the checkpoint's labels"):
        pipeline(TASK, folder)
    write_calibration(folder, TASK, {"thresholds": {"de": "high"}})
    with pytest.raises(UserError, match="expected thresholds as an object of labels"):
        pipeline(TASK, folder)
