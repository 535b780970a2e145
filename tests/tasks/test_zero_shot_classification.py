"""`zero-shot-classification` against transformers' own pipeline of that name."""

from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import TOKENIZER
from tests.tasks.texts import answers, corpus, languages, tokenizer_of
from xlmr_ray import UserError, XLMRobertaConfig, pipeline
from xlmr_ray.tasks.zero_shot_classification import ZeroShotClassification

NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
FIRST = {"id2label": {0: "ENTAILMENT", 1: "neutral", 2: "contradiction"}}
LABELS = ["politics", "人权", "a label of many words, twice as long as others", "sport"]


def with_ids(values):
    return {**values, "label2id": {label: i for i, label in values["id2label"].items()}}


@cache
def reference_pipeline(folder):
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    return transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer, device="cpu")


def reference(folder, texts, **options):
    return [reference_pipeline(folder)(text, **options) for text in texts]


def same(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one["sequence"] == other["sequence"]
        assert one["labels"] == other["labels"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


@pytest.fixture(scope="module")
def nli(make_classifier):
    return make_classifier(**with_ids(NLI))


@pytest.fixture(scope="module")
def heads(make_classifier):
    """A checkpoint of each kind of labels, made once."""
    made = {}

    def make(values):
        key = str(values)
        if key not in made:
            made[key] = make_classifier(**(with_ids(values) if "id2label" in values else values))
        return made[key]

    return make


def test_scores_are_the_references(nli):
    texts = corpus()
    assert len(languages()) > 20
    pipe = pipeline("zero-shot-classification", nli, device="cpu", candidate_labels=LABELS)
    got = answers(pipe, text=texts)
    same(got, reference(nli, texts, candidate_labels=LABELS))


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": LABELS, "multi_label": True},
        {"candidate_labels": "politics, sport,  人权 ,"},
        {"candidate_labels": ["sport"]},
        {"candidate_labels": LABELS, "hypothesis_template": "Dieser Text handelt von {}!"},
        {"candidate_labels": ["same", "same", "other"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("values", [NLI, FIRST, {"num_labels": 4}], ids=["last", "first", "unnamed"])
def test_options(heads, values, options):
    folder = heads(values)
    texts = corpus()[::8]
    got = answers(pipeline("zero-shot-classification", folder, device="cpu", **options), text=texts)
    same(got, reference(folder, texts, **options))


def test_one_label_heads(make_classifier):
    folder = make_classifier(num_labels=1)
    got = answers(pipeline("zero-shot-classification", folder, device="cpu", candidate_labels=LABELS), text=["a"])
    same(got, reference(folder, ["a"], candidate_labels=LABELS))
    with pytest.raises(UserError, match="has one label; multi_label, or one candidate, needs a head with"):
        pipeline("zero-shot-classification", folder, device="cpu", candidate_labels=LABELS, multi_label=True)


def test_the_last_label_for_want_of_a_better_is_said(make_classifier, nli, caplog):
    caplog.set_level("WARNING")  # Ray, where it was started before, raises it
    pipeline("zero-shot-classification", nli, device="cpu", candidate_labels=LABELS)
    assert not caplog.text
    pipeline("zero-shot-classification", make_classifier(num_labels=2), device="cpu", candidate_labels=LABELS)
    assert "no label of" in caplog.text
    assert "(LABEL_0, LABEL_1): the last one is taken for it" in caplog.text


def test_the_output_table(nli):
    pipe = pipeline("zero-shot-classification", nli, device="cpu", candidate_labels=LABELS)
    # 24 words of one piece: with only the longest hypothesis they do not fit.
    texts = ["a", "", "a " * 44, "many words " * 60]
    table = pipe.table(texts)
    label = pa.struct([("label", pa.string()), ("score", pa.float32())])
    assert table.schema == pa.schema([("labels", pa.list_(label)), ("tokens", pa.int32()), ("truncated", pa.bool_())])
    assert table.schema == pipe.task.schema
    assert [len(ranked) for ranked in table["labels"].to_pylist()] == [4] * 4
    encoded = pipe.task.prepare(pa.table({"text": texts}), pipe.tokenizer)
    assert encoded["document"].to_pylist() == [d for d in range(4) for _ in LABELS]
    flags = encoded["truncated"].to_pylist()
    assert flags[:8] == [False] * 8
    assert flags[8:12] == [False, False, True, False]
    assert table["truncated"].to_pylist() == [False, False, True, True]
    lengths = [len(ids) for ids in encoded["input_ids"].to_pylist()]
    assert table["tokens"].to_pylist() == [sum(lengths[i : i + 4]) for i in range(0, 16, 4)]
    assert lengths[12:] == [64] * 4
    empty = pipe.table([])
    assert (empty.schema, empty.num_rows) == (table.schema, 0)


@pytest.mark.parametrize("multi_label", [True, False])
def test_windows_of_long_texts(nli, multi_label):
    labels = ["politics", "law"] if multi_label else ["sport"]
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(nli).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    hypotheses = [f"This example is {label}." for label in labels]
    # The longest hypothesis says how long all windows are.
    longest = max(len(tokenizer(hypothesis)["input_ids"]) for hypothesis in hypotheses)
    texts = [" ".join(articles[:4]) for articles in list(languages().values())[:5]] + ["short", ""]
    options = {"candidate_labels": labels, "multi_label": multi_label, "long": "windows", "stride": 7}
    pipe = pipeline("zero-shot-classification", nli, device="cpu", **options)
    table = pipe.table(texts)
    assert table.schema == pipe.task.schema
    assert table["truncated"].to_pylist() == [False] * len(texts)
    assert table["windows"].to_pylist()[:5] > [1] * 5
    assert table["windows"].to_pylist()[5:] == [1, 1]
    for text, ranked in zip(texts, table["labels"].to_pylist(), strict=True):
        got = {one["label"]: one["score"] for one in ranked}
        for label, hypothesis in zip(labels, hypotheses, strict=True):
            size = 62 - longest + len(tokenizer(hypothesis)["input_ids"]) + 2
            inputs = tokenizer(
                [text], [hypothesis], truncation="only_first", stride=7, max_length=size, padding=True,
                return_overflowing_tokens=True, return_tensors="pt",
            )  # fmt: skip
            inputs.pop("overflow_to_sample_mapping")
            with torch.inference_mode():
                scores = model(**inputs).logits[:, [0, 2]].softmax(-1)[:, 1].numpy()
            sizes = inputs["attention_mask"].sum(1).numpy() - len(tokenizer("", hypothesis)["input_ids"])
            own = sizes - np.where(np.arange(len(sizes)) > 0, 7, -2)
            assert got[label] == pytest.approx((scores * own).sum() / own.sum(), abs=1e-5)
    joint = pipeline("zero-shot-classification", nli, device="cpu", candidate_labels=LABELS, long="windows")
    assert [sum(one["scores"]) for one in joint(texts)] == pytest.approx([1] * len(texts), abs=1e-5)
    assert joint.table([]).schema == joint.task.schema


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_are_those_of_pairs(nli, side):
    pipe = pipeline("zero-shot-classification", nli, device="cpu", candidate_labels=LABELS)
    tokenizer = type(pipe.tokenizer).from_pretrained(nli, truncation_side=side)
    texts = corpus()
    got = pipe.task.prepare(pa.table({"text": texts}), tokenizer)["input_ids"].to_pylist()
    firsts = [text for text in texts for _ in LABELS]
    seconds = [f"This example is {label}." for _ in texts for label in LABELS]
    assert got == tokenizer(firsts, seconds, truncation="only_first", max_length=64)["input_ids"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(max_size=80), max_size=4),
    st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=3),
    st.integers(30, 60),
)
def test_ids_of_any_text_are_those_of_pairs(texts, labels, length):
    tokenizer = tokenizer_of()
    task = ZeroShotClassification(candidate_labels=labels, max_length=length, config=XLMRobertaConfig(num_labels=3))
    firsts = [text for text in texts for _ in labels]
    seconds = [f"This example is {label}." for _ in texts for label in labels]
    wanted = tokenizer(firsts, seconds, truncation="only_first", max_length=length)["input_ids"] if texts else []
    encoded = task.prepare(pa.table({"text": pa.array(texts, pa.string())}), tokenizer)
    assert encoded["input_ids"].to_pylist() == wanted
    whole = tokenizer(firsts, seconds)["input_ids"] if texts else []
    assert encoded["truncated"].to_pylist() == [len(ids) > length for ids in whole]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "candidate_labels is missing: the labels to choose from"),
        ({"candidate_labels": " , "}, "candidate_labels is missing"),
        ({"candidate_labels": ["a", " "]}, r"candidate_labels\.1 is empty"),
        ({"candidate_labels": ["a", 3]}, "candidate_labels must be a list of labels or a string"),
        ({"candidate_labels": 3}, "candidate_labels must be a list of labels or a string, got 3"),
        (
            {"candidate_labels": "a", "hypothesis_template": "about"},
            "must be a text with exactly one {}",
        ),
        (
            {"candidate_labels": "a", "hypothesis_template": "{} {}"},
            "must be a text with exactly one {}",
        ),
        (
            {"candidate_labels": "a", "hypothesis_template": "{label}"},
            "must be a text with exactly one {}",
        ),
        ({"candidate_labels": "a", "hypothesis_template": "{:>300000000}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{:>999999999999999999}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{!r}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{.__class__}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{0[0]}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": "{0}"}, "exactly one {}, for the label"),
        ({"candidate_labels": "a", "hypothesis_template": 3}, "must be a text with exactly one {}"),
        ({"candidate_labels": "a", "multi_label": "yes"}, "multi_label 'yes' is none of True, False"),
        ({"candidate_labels": "a", "stride": 3}, "stride 3 is for windows, and long is cut"),
        ({"candidate_labels": "a", "labels": "b"}, "no option 'labels'"),
        ({"candidate_labels": "a, " + "b c" * 50}, "leaves no room for a text in 64 tokens"),
    ],
)
def test_options_that_do_not_fit(nli, options, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline("zero-shot-classification", nli, device="cpu", **options)(["a"])
    assert "\n" not in str(caught.value)


def test_a_call_may_bring_the_labels(nli):
    pipe = pipeline("zero-shot-classification", nli, device="cpu")
    first, second = (pipe("a text", candidate_labels=labels) for labels in (LABELS, LABELS[:2]))
    same([{**first, "sequence": "a text"}], reference(nli, ["a text"], candidate_labels=LABELS))
    assert sorted(second["labels"]) == sorted(LABELS[:2])
