"""`multiple-choice` against transformers' model of that name."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import TOKENIZER, add_tokenizer, make_config
from tests.tasks.texts import ODD, answers, languages
from xlmr_ray import UserError, pipeline
from xlmr_ray.tasks.encoded import keep_documents
from xlmr_ray.tasks.unfit import WRONG_CHOICES, UnfitRows

TEXTS = [articles[0] for articles in languages().values()] + ODD
CHOICES = [[article[:40] for article in articles[1 : 3 + i % 3]] for i, articles in enumerate(languages().values())]
CHOICES += [["a"], ["", "b"], ["😀", "e\u0301", "<mask>"], ["b", "</s>"], ["c", "d"], ["是", "不是"]]
CHOICES += [["<pad>", "a<pad>b"], ["x " * 80, "y"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("choice")
    transformers.XLMRobertaForMultipleChoice(make_config()).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    model = transformers.XLMRobertaForMultipleChoice.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)

    def scores(text, choices):
        inputs = tokenizer([text] * len(choices), choices, truncation=True, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**{name: value[None] for name, value in inputs.items()}).logits[0].softmax(-1).tolist()

    return scores


def test_scores_are_the_references(folder, reference):
    assert len(languages()) > 20
    pipe = pipeline("multiple-choice", folder, device="cpu")
    got = answers(pipe, text=TEXTS, choices=CHOICES)
    assert got == answers(pipe, text=TEXTS, choices=[json.dumps(choices) for choices in CHOICES])
    for answer, text, choices in zip(got, TEXTS, CHOICES, strict=True):
        wanted = reference(text, choices)
        assert answer["scores"] == pytest.approx(wanted, abs=1e-5)
        assert answer["choice"] == int(np.argmax(wanted))
        assert answer["score"] == max(answer["scores"])


def test_the_output_table(folder):
    pipe = pipeline("multiple-choice", folder, device="cpu")
    given = pa.table({"text": TEXTS, "choices": CHOICES})
    encoded = pipe.task.prepare(given, pipe.tokenizer)
    assert encoded["document"].to_pylist() == [i for i, choices in enumerate(CHOICES) for _ in choices]
    raw = pipe.engine.run(encoded["input_ids"]).raw[0]
    table = pipe.task.postprocess(raw, encoded)
    assert table.schema == pipe.task.schema
    truncated = pc_any(encoded)
    assert table["truncated"].to_pylist() == truncated
    assert truncated[-1] is True
    assert truncated[-8] is False
    kept = np.arange(len(TEXTS)) % 2 == 1
    left, stayed = keep_documents(encoded, kept)
    assert pipe.task.postprocess(raw[stayed], left).equals(table.filter(pa.array(kept)))
    nothing, none = keep_documents(encoded, kept & False)
    assert pipe.task.postprocess(raw[none], nothing).equals(table.slice(0, 0))


def pc_any(encoded):
    out = {}
    for document, cut in zip(encoded["document"].to_pylist(), encoded["truncated"].to_pylist(), strict=True):
        out[document] = out.get(document, False) or cut
    return list(out.values())


def test_choices_that_are_none(folder):
    pipe = pipeline("multiple-choice", folder, device="cpu")
    values = ['["a"]', "not json", '{"a": 1}', '["a", null]', "[]", "[" * 100_000, "3"]
    with pytest.raises(UnfitRows) as caught:
        answers(pipe, text=["t"] * len(values), choices=values)
    assert caught.value.failures == {
        1: (WRONG_CHOICES, "the choices are no JSON array of strings"),
        2: (WRONG_CHOICES, "the choices are no list of strings"),
        3: (WRONG_CHOICES, "the choices are no list of strings"),
        4: (WRONG_CHOICES, "the list of choices is empty"),
        5: (WRONG_CHOICES, "the choices are no JSON array of strings"),
        6: (WRONG_CHOICES, "the choices are no list of strings"),
    }
    with pytest.raises(UserError, match=r"text 0: wrong_choices: the list of choices is empty$"):
        answers(pipe, text=["t"], choices=pa.array([[]], pa.list_(pa.string())))


def test_options_that_do_not_fit(folder):
    with pytest.raises(UserError, match="no option 'top_k'; it has max_length"):
        pipeline("multiple-choice", folder, device="cpu", top_k=1)
    with pytest.raises(UserError, match="max_length must be a whole number from 1 on, got 0"):
        pipeline("multiple-choice", folder, device="cpu", max_length=0)


def test_a_checkpoint_without_the_head(make_classifier):
    with pytest.raises(UserError, match=r"classifier\.|pooler\."):
        pipeline("multiple-choice", make_classifier(), device="cpu")
