"""A temperature makes scores as sure as they are right, wherever they are computed; without one they are as before."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import optimize
from torch.nn import functional as F

from tests.train.conftest import LANGUAGES, TEXTS
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch.identity import settings_digest
from xlmr_ray.batch.input.whole import read_whole
from xlmr_ray.checkpoint.calibration import read_temperature, write_calibration
from xlmr_ray.cli import app
from xlmr_ray.train.calibrate import calibrate, error_of, temperature_of
from xlmr_ray.train.job import DataSection

CLASSES = "XLMRobertaForSequenceClassification"
NAMES = {"id2label": {0: "de", 1: "en", 2: "fr"}, "label2id": {"de": 0, "en": 1, "fr": 2}}


@pytest.mark.parametrize("several", [False, True])
def test_the_temperature_is_the_likeliest(several):
    random = np.random.default_rng(0)
    true = random.normal(0, 2, (2000, 5))
    if several:
        wanted = (random.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.float32)
    else:
        wanted = (true + random.gumbel(size=true.shape)).argmax(1)
    logits = (3 * true).astype(np.float32)
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(wanted)

    def loss(t):
        return float(F.binary_cross_entropy_with_logits(x / t, y.double()) if several else F.cross_entropy(x / t, y))

    found = temperature_of(logits, wanted)
    assert found == pytest.approx(optimize.minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x, rel=2e-3)
    assert found == pytest.approx(3, rel=0.1)
    assert error_of(logits / found, wanted) < error_of(logits, wanted) / 2


@pytest.fixture
def fitted(tmp_path):
    def call(task, folder, rows, **columns):
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        section = DataSection(path=[str(tmp_path / "rows.parquet")], **columns)
        return calibrate(task, str(folder), section, read_whole, options={})

    return call


@pytest.mark.parametrize(
    ("problem", "labels", "function"),
    [
        ("single_label_classification", LANGUAGES, lambda x: x.softmax(-1)),
        ("multi_label_classification", [[one] for one in LANGUAGES], lambda x: x.sigmoid()),
    ],
)
def test_classification(make_checkpoint, fitted, problem, labels, function):
    folder = make_checkpoint(CLASSES, problem_type=problem, **NAMES)
    plain = pipeline("text-classification", folder, top_k=None)(TEXTS)
    logits = pipeline("text-classification", folder, top_k=None, function_to_apply="none")(TEXTS)
    digest = settings_digest(folder)
    found = fitted("text-classification", folder, {"text": TEXTS * 5, "label": labels * 5})
    assert found.file == folder / "calibration.json"
    assert read_temperature(folder, "text-classification") == found.temperature != 1
    assert settings_digest(folder) != digest  # so it is another run
    scaled = pipeline("text-classification", folder, top_k=None)(TEXTS)
    for own, raw in zip(scaled, logits, strict=True):
        wanted = function(torch.tensor([one["score"] for one in raw], dtype=torch.float64) / found.temperature)
        assert [one["label"] for one in own] == [one["label"] for one in raw]
        assert [one["score"] for one in own] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert pipeline("text-classification", folder, top_k=None, function_to_apply="none")(TEXTS) == logits
    found.file.unlink()
    assert pipeline("text-classification", folder, top_k=None)(TEXTS) == plain  # to the last bit
    assert settings_digest(folder) == digest


def test_rows_that_are_all_right_tell_no_temperature(make_checkpoint, fitted):
    """The likeliest one would make every score 1."""
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    labels = [one["label"] for one in pipeline("text-classification", folder)(TEXTS)]
    found = fitted("text-classification", folder, {"text": TEXTS, "label": labels})
    assert (found.has_best, found.better, found.file) == (False, False, None)


def test_rerank(make_checkpoint, fitted):
    folder = make_checkpoint(CLASSES, num_labels=1)
    pairs = [{"text": TEXTS[0], "text_pair": text} for text in TEXTS]
    logits = pipeline("rerank", folder, function_to_apply="none")(pairs)
    rows = {"text": [TEXTS[0]] * 12, "text_pair": TEXTS, "label": [0, 1] * 6}
    found = fitted("rerank", folder, rows, text_pair="text_pair")
    write_calibration(folder, "rerank", {"temperature": found.temperature})
    scaled = torch.tensor(logits, dtype=torch.float64) / found.temperature
    assert pipeline("rerank", folder)(pairs) == pytest.approx(scaled.sigmoid().tolist(), abs=1e-6)
    assert pipeline("rerank", folder, function_to_apply="none")(pairs) == logits


def test_what_is_wrong(make_checkpoint, fitted):
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    with pytest.raises(UserError, match="expected a folder of this machine"):
        fitted("text-classification", "embedded:mini", {"text": TEXTS, "label": LANGUAGES})
    with pytest.raises(UserError, match="has no temperature"):
        fitted("embedding", folder, {"text": TEXTS, "label": LANGUAGES})
    (folder / "calibration.json").write_text('{"text-classification": {"temperature": 0}}')
    with pytest.raises(UserError, match="expected a temperature above 0, got 0"):
        pipeline("text-classification", folder)


def test_the_command_says_what_was_left_out(make_checkpoint, tmp_path, capsys):
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    pq.write_table(pa.table({"text": TEXTS, "lang": [*LANGUAGES[:-1], None]}), tmp_path / "rows.parquet")
    words = ["calibrate", "text-classification", "--model", str(folder), "--data", str(tmp_path / "rows.parquet")]
    app([*words, "--column", "label=lang", "--skip-bad-rows"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "of 11 rows" in said
    assert "1 row skipped" in said
