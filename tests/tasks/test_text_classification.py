"""`text-classification` against transformers' own pipeline of that name."""

import pyarrow as pa
import pytest
import transformers

from tests.models import TOKENIZER
from xlmr_ray import UserError, pipeline

TEXTS = ["Hello World!", "人人生而自由", "", "many words " * 60, "Все люди рождаются свободными", "a <pad><pad> b"]
# Without the empty text: by itself in a call, transformers takes an empty second text for none; in a batch it does not.
FULL = [text for text in TEXTS if text]
PAIRS = [{"text": text, "text_pair": other} for text, other in zip(FULL, reversed(FULL), strict=True)]
LABELS = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


def reference(folder, inputs, **options):
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    return [pipe(one, truncation=True, **options) for one in inputs]


def close(got, wanted):
    assert [answer["label"] for answer in got] == [answer["label"] for answer in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        LABELS,
        {**LABELS, "problem_type": "multi_label_classification"},
        {**LABELS, "problem_type": "regression"},
        {"num_labels": 1},
        {"num_labels": 1, "problem_type": "regression"},
    ],
    ids=["single", "multi", "regression-3", "one", "regression-1"],
)
def test_scores_are_the_references(make_classifier, values):
    folder = make_classifier(**values)
    best = pipeline("text-classification", folder, device="cpu")(TEXTS)
    close(best, [answer[0] if isinstance(answer, list) else answer for answer in reference(folder, TEXTS)])
    ranked = pipeline("text-classification", folder, device="cpu", top_k=None)(TEXTS)
    for got, wanted in zip(ranked, reference(folder, TEXTS, top_k=None), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_functions_and_top_k(make_classifier, function):
    folder = make_classifier(**LABELS)
    got = pipeline("text-classification", folder, device="cpu", top_k=2, function_to_apply=function)(TEXTS)
    for one, wanted in zip(got, reference(folder, TEXTS, top_k=2, function_to_apply=function), strict=True):
        close(one, wanted)


def test_pairs(make_classifier):
    folder = make_classifier(**LABELS)
    got = pipeline("text-classification", folder, device="cpu", pairs=True)(PAIRS)
    close(got, [answer[0] if isinstance(answer, list) else answer for answer in reference(folder, PAIRS)])


def test_the_output_table(make_classifier):
    folder = make_classifier(**LABELS)
    pipe = pipeline("text-classification", folder, device="cpu")
    table = pipe.table(TEXTS)
    assert table.schema == pa.schema(
        [("label", pa.string()), ("score", pa.float32()), ("tokens", pa.int32()), ("truncated", pa.bool_())]
    )
    assert table["truncated"].to_pylist() == [False, False, False, True, False, False]
    assert table["tokens"].to_pylist()[3] == 64
    assert pipe.task.schema == table.schema
    ranked = pipeline("text-classification", folder, device="cpu", top_k=5)
    answer = ranked.table(TEXTS)
    assert answer.schema == ranked.task.schema
    assert len(answer["labels"][0]) == 3


def test_no_texts(make_classifier):
    folder = make_classifier(**LABELS)
    assert pipeline("text-classification", folder, device="cpu")([]) == []
    assert pipeline("text-classification", folder, device="cpu", top_k=None)([]) == []


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"top_k": 0}, ["a"], "top_k must be a whole number from 1 on, got 0"),
        ({"function_to_apply": "relu"}, ["a"], "function_to_apply 'relu' is none of"),
        ({}, [{"text": "a", "title": "b"}], "text 0: expected a string, got a mapping of text, title"),
        ({"pairs": True}, ["a"], "text 0: expected a mapping of text, text_pair"),
        ({}, [3], "text 0: expected a string, got int"),
    ],
)
def test_calls_that_do_not_fit(make_classifier, options, inputs, message):
    with pytest.raises(UserError, match=message):
        pipeline("text-classification", make_classifier(**LABELS), device="cpu", **options)(inputs)


def test_a_task_that_there_is_not(make_classifier):
    with pytest.raises(UserError, match="no task 'text-clasification', did you mean 'text-classification'"):
        pipeline("text-clasification", make_classifier(**LABELS))


def test_a_checkpoint_without_the_head(plain_encoder):
    with pytest.raises(UserError, match=r"classifier\.dense\.weight"):
        pipeline("text-classification", plain_encoder, device="cpu")
