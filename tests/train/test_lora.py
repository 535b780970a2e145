"""LoRA is trained as peft trains it, and its folder is one that peft and our loader read alike."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers

from tests.train.conftest import LANGUAGES, TEXTS, record
from tests.train.test_finetune import PLAIN, RATE, oracle, tokenized
from xlmr_ray import XLMRobertaForQuestionAnswering, XLMRobertaForSequenceClassification, XLMRobertaModel, pipeline
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForTokenClassification

CLASSES = "XLMRobertaForSequenceClassification"
NAMES = {"id2label": {0: "de", 1: "en", 2: "fr"}, "label2id": {"de": 0, "en": 1, "fr": 2}}
LORA = {"rank": 4, "alpha": 12, "modules": ["query", "value", "dense"]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XLMR_RAY_CACHE", str(tmp_path / "cache"))


def test_the_losses_are_peft_s(make_checkpoint, train):
    folder = make_checkpoint(CLASSES, problem_type="single_label_classification", **NAMES)
    rows = {"text": TEXTS, "label": LANGUAGES}
    outcome = train(rows, folder, task="text-classification", method="lora", lora=LORA, **PLAIN)
    base = getattr(transformers, CLASSES).from_pretrained(folder)
    torch.manual_seed(0)
    modules = LORA["modules"]
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=12, target_modules=modules, modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(base, config)
    inputs = tokenized(folder, TEXTS)
    losses = oracle(model, {**inputs, "labels": torch.tensor([["de", "en", "fr"].index(one) for one in LANGUAGES])})
    assert record(outcome)["losses"] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] - losses[0] < RATE * 4


SPANS = [[{"start": 0, "end": len(text.split()[0]), "label": "X"}] for text in TEXTS]
ANSWERS = {"text": ["Recht"], "answer_start": [TEXTS[3].index("Recht")]}
CASES = {
    "single": ("text-classification", {"label": LANGUAGES}, XLMRobertaForSequenceClassification),
    "multi": ("text-classification", {"label": [[one] for one in LANGUAGES]}, XLMRobertaForSequenceClassification),
    "rerank": ("rerank", {"text_pair": TEXTS[::-1], "label": [0, 1] * 6}, XLMRobertaForSequenceClassification),
    "entities": ("token-classification", {"label": SPANS}, XLMRobertaForTokenClassification),
    "answers": (
        "question-answering",
        {"context": TEXTS[3:4] * 12, "question": TEXTS, "label": [ANSWERS] * 12},
        XLMRobertaForQuestionAnswering,
    ),
    "embedding": ("embedding", {"text_pair": TEXTS[::-1]}, XLMRobertaModel),
}


@pytest.mark.parametrize("case", CASES)
def test_the_folder(make_checkpoint, train, case):
    """On a bare encoder: the head, and the names of its labels, come with the adapter."""
    task, rows, kind = CASES[case]
    folder = make_checkpoint()
    columns = {name: name for name in rows if name != "label"}
    rows = {"text": TEXTS, **rows}
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 0.02, "train": columns}
    outcome = train(rows, folder, task=task, method="lora", lora=LORA, **training)
    files = {path.name for path in outcome.folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= files
    assert "config.json" not in files  # a few matrices, and no copy of the encoder

    ours = kind.from_pretrained(outcome.folder).eval()
    library = getattr(transformers, kind.__name__)
    base = library.from_pretrained(folder, num_labels=len(ours.config.labels), ignore_mismatched_sizes=True)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    theirs = peft.PeftModel.from_pretrained(base, str(outcome.folder)).eval()
    inputs = tokenized(folder, TEXTS)
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted, got, plain = (model(**inputs)[0] for model in (theirs, ours, library.from_pretrained(folder).eval()))
    if wanted.shape[:2] == mask.shape:
        wanted, got = wanted[mask], got[mask]
        plain = plain[mask]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert plain.shape != got.shape or (got - plain).abs().max() > 1e-3  # it has learnt something
    merged = theirs.merge_and_unload().state_dict()
    assert any(not torch.equal(merged[name], before[name]) for name in merged if "query.weight" in name)


def test_names_and_kind_of_problem(make_checkpoint, train):
    folder = make_checkpoint()
    rows = {"text": TEXTS, "label": [[one] for one in LANGUAGES]}
    outcome = train(rows, folder, task="text-classification", method="lora", epochs=1, batch_size=4)
    answers = pipeline("text-classification", outcome.folder, top_k=None)(TEXTS)
    assert {one["label"] for one in answers[0]} == {"de", "en", "fr"}
    scores = np.array([[one["score"] for one in own] for own in answers])
    assert not np.allclose(scores.sum(1), 1)  # each label by itself
    kept = json.loads((outcome.folder / "adapter_config.json").read_text("utf-8"))
    assert kept["base_model_name_or_path"] == str(folder)


def test_again_and_done(make_checkpoint, train):
    """The same digits when it is computed again, and a second call has nothing to do."""
    folder = make_checkpoint()
    job = {"task": "text-classification", "method": "lora", "epochs": 2, "batch_size": 4, "lora": {"dropout": 0.1}}
    rows = {"text": TEXTS, "label": LANGUAGES}
    first, second = (train(rows, folder, output=name, **job) for name in ("one", "two"))
    assert record(first)["losses"] == record(second)["losses"]
    assert train(rows, folder, output="one", **job).progress is None
