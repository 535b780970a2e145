"""A training's page: what is asked for is there, figures are right, names are harmless, and nothing is asked for."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from sklearn.metrics import confusion_matrix

from tests.chromium import looks, needs_chromium, running_chromium
from tests.train.conftest import LANGUAGES, TEXTS, record
from xlmr_ray.train.page import training_page

HOSTILE = "<script>alert(1)</script>"


def trained(train, model, labels, **more):
    rows = {"text": TEXTS * 2, "label": labels * 2, "lang": (LANGUAGES[1:] + LANGUAGES[:1]) * 2, "doc": range(24)}
    columns = {"language": "lang", "document": "doc"}
    validation = {"share": 0.5}
    return train(rows, model, task="text-classification", train=columns, validation=validation, epochs=2, **more)


def test_figures(make_checkpoint, train):
    """By language, confusion and calibration are those of the checkpoint that was written."""
    outcome = trained(train, make_checkpoint(), LANGUAGES)
    found = record(outcome)
    held = found["held"]
    assert held["rows"] == found["rows"]["validation"] == sum(one["rows"] for one in held["languages"])
    right = sum(one["rows"] * one["measures"]["accuracy"] for one in held["languages"])
    assert right / held["rows"] == pytest.approx(found["history"][-1]["accuracy"])
    counts = np.array(held["confusion"]["counts"])
    assert held["confusion"]["labels"] == ["de", "en", "fr"]
    assert np.trace(counts) == pytest.approx(right)
    bins = held["calibration"]["bins"]
    assert sum(one["scores"] for one in bins) == held["rows"]
    error = sum(one["scores"] * abs(one["mean"] - one["right"]) for one in bins) / held["rows"]
    assert held["calibration"]["error"] == pytest.approx(error)


def test_confusion_is_scikits(make_checkpoint, train, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": TEXTS, "label": LANGUAGES}), tmp_path / "held.parquet")
    rows = {"text": TEXTS, "label": LANGUAGES}
    validation = {"path": str(tmp_path / "held.parquet")}
    outcome = train(rows, make_checkpoint(), task="text-classification", epochs=3, validation=validation)
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(outcome.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(outcome.folder)
    with torch.no_grad():
        best = model(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits.argmax(1)
    names = [model.config.id2label[int(one)] for one in best]
    want = confusion_matrix(LANGUAGES, names, labels=["de", "en", "fr"])
    assert record(outcome)["held"]["confusion"]["counts"] == want.tolist()
    assert "languages" not in record(outcome)["held"]


def test_without_a_validation_there_is_the_loss(make_checkpoint, train):
    outcome = train({"text": TEXTS, "label": LANGUAGES}, make_checkpoint(), task="text-classification", epochs=1)
    text = (outcome.folder / "training.html").read_text("utf-8")
    assert "Loss by step" in text
    assert "held-out" not in text


OTHERS = {
    "token-classification": {"label": [[{"start": 0, "end": 5, "label": "X"}]] * 12},
    "rerank": {"text_pair": TEXTS[::-1], "label": [0, 1] * 6},
    "fill-mask": {},
    "regression": {"label": [0.5, 1.25, 2.0] * 4},
    "several": {"label": [["a"], ["a", "b"], []] * 4},
}


@pytest.mark.parametrize("task", OTHERS)
def test_other_tasks(make_checkpoint, train, task):
    rows = {"text": TEXTS, "lang": ["de", "fr"] * 6, **OTHERS[task]}
    name = task if "-" in task or task == "rerank" else "text-classification"
    columns = {"language": "lang"} | ({"text_pair": "text_pair"} if "text_pair" in rows else {})
    model = make_checkpoint("XLMRobertaForMaskedLM") if task == "fill-mask" else make_checkpoint()
    outcome = train(rows, model, task=name, train=columns, validation={"share": 0.5}, epochs=1)
    text = (outcome.folder / "training.html").read_text("utf-8")
    assert ("By language" in text) == (record(outcome)["held"].get("languages") is not None)
    assert ("How sure and how right" in text) == (task == "several")
    json.loads((outcome.folder / "training.json").read_text("utf-8"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def browser():
    with running_chromium() as driver:
        yield driver


@needs_chromium
def test_names_are_harmless_and_nothing_is_asked_for(make_checkpoint, train, browser):
    labels = [HOSTILE if one == "de" else one for one in LANGUAGES]
    outcome = trained(train, make_checkpoint(), labels, name=HOSTILE)
    text = (outcome.folder / "training.html").read_text("utf-8")
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|http://www.w3.org|#)', text)
    assert text == training_page(record(outcome))
    browser.get((outcome.folder / "training.html").as_uri())
    assert HOSTILE in browser.title
    assert browser.execute_script("return document.querySelectorAll('script, img').length") == 0
    requests = [entry for entry in browser.get_log("performance") if 'Network.requestWillBeSent"' in entry["message"]]
    assert all("file://" in entry["message"] or "data:" in entry["message"] for entry in requests)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    for words in ("Loss by step", "By language", "Labels and what was found", "How sure and how right"):
        assert words in browser.page_source
    for width in (360, 1280):
        looks(browser, width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
