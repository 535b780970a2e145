"""Measures against scikit-learn, seqeval's definition and SQuAD's; intervals; and the command on real answers."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn import metrics

from tests.train.conftest import LANGUAGES, TEXTS
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch.input.whole import read_whole
from xlmr_ray.train.evaluate import evaluate
from xlmr_ray.train.job import DataSection
from xlmr_ray.train.measures.bootstrap import difference, draw, figure
from xlmr_ray.train.measures.by_task import mean_of
from xlmr_ray.train.measures.calibration_error import calibration_error
from xlmr_ray.train.measures.spans import best_of, exact, f1, span_counts, word_f1

CLASSES = "XLMRobertaForSequenceClassification"
NAMES = {"id2label": {0: "de", 1: "en", 2: "fr"}, "label2id": {"de": 0, "en": 1, "fr": 2}}


@pytest.fixture
def measured(tmp_path):
    """The figures of one checkpoint over all rows."""

    def call(task, folder, rows, **columns):
        pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
        section = DataSection(path=[str(tmp_path / "rows.parquet")], **columns)
        found = evaluate(task, [str(folder)], section, read_whole, by=(), options={}, resamples=5, seed=0)
        assert found.rows == len(rows["text"])
        return {name: own[0].value for name, own in found.groups[0].figures.items()}

    return call


def test_one_label(make_checkpoint, measured):
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    found = measured("text-classification", folder, {"text": TEXTS, "label": LANGUAGES})
    scores = np.array(
        [
            [{one["label"]: one["score"] for one in own}[name] for name in ("de", "en", "fr")]
            for own in pipeline("text-classification", folder, top_k=None)(TEXTS)
        ]
    )
    best = [("de", "en", "fr")[i] for i in scores.argmax(1)]
    expected = {
        "accuracy": metrics.accuracy_score(LANGUAGES, best),
        "macro_f1": metrics.f1_score(LANGUAGES, best, average="macro", zero_division=0.0),
        "auc": metrics.roc_auc_score(LANGUAGES, scores / scores.sum(1, keepdims=True), multi_class="ovr"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    gaps = 0.0
    for i in range(15):
        own = [j for j in range(12) if i / 15 < scores[j].max() <= (i + 1) / 15]
        if own:
            right = np.mean([best[j] == LANGUAGES[j] for j in own])
            gaps += len(own) / 12 * abs(right - np.mean([scores[j].max() for j in own]))
    assert found["calibration_error"] == pytest.approx(gaps, abs=1e-6)


def test_several_labels_and_a_number(make_checkpoint, measured):
    folder = make_checkpoint(CLASSES, problem_type="multi_label_classification", **NAMES)
    labels = [[], ["de"], ["de", "fr"], ["en"], ["fr"], ["de", "en", "fr"]] * 2
    found = measured("text-classification", folder, {"text": TEXTS, "label": labels})
    scores = np.array(
        [
            [{one["label"]: one["score"] for one in own}[name] for name in ("de", "en", "fr")]
            for own in pipeline("text-classification", folder, top_k=None)(TEXTS)
        ]
    )
    hot = np.array([[name in own for name in ("de", "en", "fr")] for own in labels], int)
    expected = {
        "micro_f1": metrics.f1_score(hot, scores > 0.5, average="micro", zero_division=0.0),
        "macro_f1": metrics.f1_score(hot, scores > 0.5, average="macro", zero_division=0.0),
        "auc": metrics.roc_auc_score(hot, scores),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    number = make_checkpoint(CLASSES, num_labels=1, problem_type="regression")
    values = np.linspace(-1, 1, 12)[np.random.default_rng(0).permutation(12)].tolist()
    found = measured("text-classification", number, {"text": TEXTS, "label": values})
    own = [one["score"] for one in pipeline("text-classification", number)(TEXTS)]
    assert found["spearman"] == pytest.approx(stats.spearmanr(own, values).statistic)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(values, own), abs=1e-6)


def test_ranking_and_retrieval(make_checkpoint, measured):
    folder = make_checkpoint(CLASSES, num_labels=1)
    queries, labels = [TEXTS[0]] * 6 + [TEXTS[1]] * 6, [0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    rows = {"text": queries, "text_pair": TEXTS, "label": labels}
    found = measured("rerank", folder, rows, text_pair="text_pair")
    pairs = [{"text": query, "text_pair": text} for query, text in zip(queries, TEXTS, strict=True)]
    scores = np.array(pipeline("rerank", folder)(pairs))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
    first = [int(np.argmax(scores[:6])), 6 + int(np.argmax(scores[6:]))]
    assert found["recall_at_1"] == np.mean([labels[first[0]] / 2, labels[first[1]]])
    assert found["recall_at_10"] == 1.0
    encoder = make_checkpoint()
    found = measured("embedding", encoder, {"text": TEXTS, "text_pair": TEXTS}, text_pair="text_pair")
    assert found == {"recall_at_1": 1.0, "recall_at_10": 1.0}


def test_spans():
    """Entities count where start, end and kind are right, as in seqeval: its own example, in characters."""
    wanted = [[(3, 6, "MISC")], [(0, 2, "PER")]]
    found = [[(2, 6, "MISC")], [(0, 2, "PER")]]
    counts = span_counts(found, wanted)
    assert f1(counts) == 0.5
    assert counts.tolist() == [[0, 1, 1], [1, 1, 1]]
    assert f1(span_counts([[]], [[]])) == 0.0
    assert word_f1("The Eiffel tower,", "eiffel Tower") == 1.0
    assert word_f1("in the tower", "Eiffel tower") == pytest.approx(0.5)
    assert (word_f1("", ""), word_f1("", "x")) == (1.0, 0.0)


def test_any_of_several_answers_is_right(make_checkpoint, measured):
    """As SQuAD's script: the best of all answers of a question counts."""
    folder = make_checkpoint("XLMRobertaForQuestionAnswering")
    given = {"question": "Who?", "context": "It was Ada Lovelace of London."}
    answer = pipeline("question-answering", folder)(given)["answer"]
    texts = ["It was", answer]
    label = {"text": texts, "answer_start": [given["context"].index(text) for text in texts]}
    rows = {"text": [given["question"]], "context": [given["context"]], "label": [label]}
    found = measured("question-answering", folder, rows, question="text", context="context")
    assert found == {"exact": 1.0, "f1": 1.0}
    assert best_of(word_f1, "of London", ["Ada", "London"]) == pytest.approx(2 / 3)
    assert (best_of(exact, "", []), best_of(exact, "", ["a", "Ada"])) == (1.0, 0.0)


def test_calibration_error_of_what_is_calibrated():
    random = np.random.default_rng(0)
    confidence = random.random(200_000)
    assert calibration_error(confidence, random.random(200_000) < confidence) < 0.01
    assert calibration_error(np.full(10, 0.9), np.zeros(10, bool)) == pytest.approx(0.9)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0


def test_intervals():
    """The interval of a mean is the normal one; it holds the true value as often as it says; equal models are equal."""
    random = np.random.default_rng(1)
    rows = np.arange(400)
    held = 0
    for seed in range(60):
        found = figure(draw(mean_of(random.random(400) < 0.7), rows, count=200, seed=seed))
        held += found.low <= 0.7 <= found.high
        assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.21 / 400), rel=0.3)
    assert held >= 50
    one = random.random(400) < 0.7
    better = one | (random.random(400) < 0.3)
    drawn, others = (draw(mean_of(own), rows, count=200, seed=0) for own in (one, better))
    same = difference(drawn, drawn)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    more = difference(drawn, others)
    assert more.low > 0
    assert more.p < 0.01
    assert mean_of(one)(rows) + more.value == pytest.approx(mean_of(better)(rows))


def test_the_command(make_checkpoint, tmp_path):
    one, other = (make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES) for _ in range(2))
    labelled = enumerate(zip(TEXTS, LANGUAGES, strict=True))
    rows = "".join(json.dumps({"t": t, "lang": y, "n": i % 2}) + "\n" for i, (t, y) in labelled)
    (tmp_path / "rows.jsonl").write_text(rows)
    command = [sys.executable, "-m", "xlmr_ray", "evaluate", "text-classification", "--model", str(one), "--model"]
    command += [str(other), "--data", str(tmp_path / "rows.jsonl"), "--column", "text=t", "--column", "label=lang"]
    done = subprocess.run(
        [*command, "--by", "n", "--resamples", "20", "--json"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(group["column"], group["value"], group["rows"]) for group in found["groups"]] == [
        ("all", "", 12),
        ("n", "0", 6),
        ("n", "1", 6),
    ]
    whole, *parts = [group["figures"]["accuracy"][0]["value"] for group in found["groups"]]
    assert whole == pytest.approx(sum(parts) / 2)
    assert found["groups"][0]["differences"]["accuracy"] == {"value": 0, "low": 0, "high": 0, "p": 1}


def test_what_is_wrong(make_checkpoint, measured, tmp_path):
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    with pytest.raises(UserError, match="label 'it' is none of"):
        measured("text-classification", folder, {"text": TEXTS, "label": ["it"] * 12})
    with pytest.raises(UserError, match=f"row 0: label of {len(TEXTS[0])} characters is none of"):
        measured("text-classification", folder, {"text": TEXTS, "label": TEXTS})  # no document in a message
    rows = {"text": TEXTS[:1], "choices": [TEXTS[1:3]], "label": [0.5]}
    with pytest.raises(UserError, match="no index of one of the 2 choices"):
        measured("multiple-choice", make_checkpoint("XLMRobertaForMultipleChoice"), rows, choices="choices")
    number = make_checkpoint(CLASSES, num_labels=1, problem_type="regression")
    rating = make_checkpoint(CLASSES, id2label={0: "1", 1: "2"}, label2id={"1": 0, "2": 1})
    pq.write_table(pa.table({"text": TEXTS, "label": [1, 2] * 6}), tmp_path / "rows.parquet")
    section = DataSection(path=[str(tmp_path / "rows.parquet")])
    both = [str(number), str(rating)]
    with pytest.raises(UserError, match="measured by different figures"):
        evaluate("text-classification", both, section, read_whole, by=(), options={}, resamples=5, seed=0)
    with pytest.raises(UserError, match="is not evaluated here"):
        measured("sparse", folder, {"text": TEXTS, "label": ["it"] * 12})


def test_what_is_not_installed_is_said_first(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'xlmr-ray\[train\]'"):
        measured("text-classification", tmp_path / "not read", {"text": TEXTS, "label": LANGUAGES})


@pytest.mark.parametrize(
    ("task", "kind", "rows", "columns"),
    [
        (
            "token-classification",
            "XLMRobertaForTokenClassification",
            {"text": ["Ada"], "label": [[{"start": 0, "end": 3, "label": "X"}]]},
            {},
        ),
        (
            "multiple-choice",
            "XLMRobertaForMultipleChoice",
            {"text": TEXTS[:2], "choices": [TEXTS[2:4], TEXTS[4:7]], "label": [1, 2]},
            {"choices": "choices"},
        ),
        (
            "question-answering",
            "XLMRobertaForQuestionAnswering",
            {"text": ["Who?"], "context": ["It was Ada."], "label": [{"text": ["Ada"], "answer_start": [7]}]},
            {"question": "text", "context": "context"},
        ),
        (
            "sentence-similarity",
            "XLMRobertaModel",
            {"text": TEXTS, "pair": TEXTS[::-1], "label": [1.5, 2] * 6},
            {"text_pair": "pair"},
        ),
    ],
)
def test_each_task(make_checkpoint, measured, task, kind, rows, columns):
    found = measured(task, make_checkpoint(kind), rows, **columns)
    assert found
    assert all(value == value for value in found.values())
    if task == "multiple-choice":
        pipe = pipeline(task, make_checkpoint(kind))
        both = [{"text": t, "choices": c} for t, c in zip(rows["text"], rows["choices"], strict=True)]
        right = [one["choice"] == label for one, label in zip(pipe(both), rows["label"], strict=True)]
        assert found["accuracy"] == np.mean(right)
