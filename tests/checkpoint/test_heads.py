"""Heads saved beside the encoder that they share."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import xlmr_ray
from tests.checkpoint.conftest import SIZES, Make
from tests.models import add_tokenizer, save_classifier
from xlmr_ray.checkpoint.digest import encoder_digest, weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.pipeline import pipeline
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

BARE = "XLMRobertaModel"
CLASSES = {
    "XLMRobertaForSequenceClassification": ("classifier",),
    "XLMRobertaForTokenClassification": ("classifier",),
    "XLMRobertaForQuestionAnswering": ("qa_outputs",),
    "XLMRobertaForMultipleChoice": ("classifier", "pooler"),
    "XLMRobertaForMaskedLM": ("lm_head",),
}
IDS = torch.arange(5, 14)[None]


def new_head(encoder: Path, kind: str, seed: int = 3, **overrides: Any) -> Any:
    """A model of the encoder with a random head on it."""
    torch.manual_seed(seed)
    with pytest.warns(UserWarning, match="made anew"):
        model = getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(encoder, **overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("roberta.") or "pooler" in name:
                parameter.normal_(0.0, 0.5)
    return model


@pytest.mark.parametrize("rename", [False, True], ids=["bare", "prefixed"])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_head_is_a_checkpoint(make: Make, kind: str, rename: bool) -> None:
    encoder = make(BARE, rename=(lambda name: f"roberta.{name}") if rename else (lambda name: name))
    model = new_head(encoder, kind, num_labels=2)
    folder = save_head(model, encoder, "mine")
    assert folder == encoder / "heads" / "mine"
    assert XLMRobertaConfig.from_pretrained(folder).architectures == [kind]
    stored = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in stored} == set(CLASSES[kind])
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [kind]
    assert config["encoder_digest"] == encoder_digest(encoder)

    again = getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(folder)
    assert again.load_report.missing == again.load_report.unexpected == ()
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert encoder_digest(folder) == encoder_digest(encoder)
    assert weights_digest(folder) != weights_digest(encoder)


def test_several_heads_beside_one_encoder(make: Make) -> None:
    encoder = make(BARE)
    before = weights_digest(encoder)
    kind = "XLMRobertaForSequenceClassification"
    languages = new_head(encoder, kind, 1, id2label={0: "de", 1: "fr", 2: "ja", 3: "sw"})
    topics = new_head(encoder, kind, 2, num_labels=2)
    one, two = save_head(languages, encoder, "languages"), save_head(topics, encoder, "topics")
    assert weights_digest(one) != weights_digest(two)
    assert weights_digest(encoder) == before
    assert encoder_digest(one) == encoder_digest(two)
    loaded = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(one)
    assert loaded.config.labels == ["de", "fr", "ja", "sw"]
    # Of the head, as a script reads it before the model, which it then gives it to.
    config = XLMRobertaConfig.from_pretrained(one)
    assert config.labels == ["de", "fr", "ja", "sw"]
    given = type(loaded).from_pretrained(one, config=config, state_dict=languages.state_dict())
    assert torch.equal(given(IDS).logits, languages(IDS).logits)
    assert torch.equal(loaded(IDS).logits, languages(IDS).logits)
    save_head(topics, encoder, "languages")  # in the place of the old one
    assert weights_digest(one) == weights_digest(two)
    loaded.save_pretrained(encoder.parent / "whole")
    assert "encoder_digest" not in json.loads((encoder.parent / "whole" / "config.json").read_text())


def test_a_head_alone(make: Make) -> None:
    encoder = make(BARE)
    config = XLMRobertaConfig(**SIZES)
    head = nn.ModuleDict({"classifier": nn.Linear(32, 3)})
    loaded = xlmr_ray.modeling.xlm_roberta.XLMRobertaForTokenClassification.from_pretrained(
        save_head(head, encoder, "ner", config=config)
    )
    assert torch.equal(loaded.classifier.weight, head["classifier"].weight)
    with pytest.raises(UserError, match="ModuleDict has no config"):
        save_head(head, encoder, "ner")


def test_an_encoder_that_was_trained_too(make: Make) -> None:
    encoder = make(BARE)
    model = new_head(encoder, "XLMRobertaForSequenceClassification")
    with torch.no_grad():
        model.roberta.encoder.layer[1].output.dense.bias[3] += 1
    with pytest.raises(UserError, match=r"layer.1.output.dense.bias differs from the module's: the encoder was"):
        save_head(model, encoder, "mine")
    assert not (encoder / "heads").exists()
    other = make(BARE, folder="narrow", hidden_size=16)
    with pytest.raises(UserError, match="hidden_size 16, the head's is 32"):
        save_head(model, other, "mine")


def test_what_is_no_head(make: Make) -> None:
    encoder = make(BARE)
    model = xlmr_ray.XLMRobertaModel.from_pretrained(encoder)
    with pytest.raises(UserError, match="XLMRobertaModel has no head; save_pretrained writes the encoder"):
        save_head(model, encoder, "mine")
    with pytest.raises(UserError, match=r"head '../mine': expected letters"):
        save_head(model, encoder, "../mine")


def test_an_encoder_that_changed_since(make: Make) -> None:
    encoder = make(BARE)
    folder = save_head(new_head(encoder, "XLMRobertaForSequenceClassification"), encoder, "mine")
    file = encoder / "model.safetensors"
    tensors = load_file(file)
    tensors["pooler.dense.bias"] += 1  # no part of what the head stands on
    save_file(tensors, file)
    weights_digest(folder)
    tensors["embeddings.LayerNorm.bias"] += 1
    save_file(tensors, file)
    for use in (weights_digest, xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained):
        with pytest.raises(
            UserError, match=r"heads/mine: this head was trained on an encoder with digest \w{12}, .*model has"
        ):
            use(folder)
    shutil.move(folder, encoder.parent / "alone")
    with pytest.raises(UserError, match=r"no embeddings.word_embeddings.weight: not an XLM-R checkpoint"):
        xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(encoder.parent / "alone")


def test_a_pipeline_on_a_head(tmp_path: Path) -> None:
    whole = save_classifier(tmp_path / "whole", num_labels=3)
    model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(whole)
    encoder = tmp_path / "encoder"
    model.base_model.save_pretrained(encoder)
    add_tokenizer(encoder)
    folder = save_head(model, encoder, "labels")
    texts = ["Alle Menschen sind frei", "Tous les êtres humains", "人は"]
    got = pipeline("text-classification", str(folder))(texts)
    assert got == pipeline("text-classification", str(whole))(texts)
    assert (
        XLMRobertaTokenizer.from_pretrained(folder).fingerprint
        == XLMRobertaTokenizer.from_pretrained(encoder).fingerprint
    )


def test_a_head_in_an_object_store(make: Make, tmp_path: Path) -> None:
    encoder = make(BARE)
    model = new_head(encoder, "XLMRobertaForSequenceClassification")
    save_head(model, encoder, "mine")
    save_head(new_head(encoder, "XLMRobertaForTokenClassification"), encoder, "other")
    store = fsspec.filesystem("memory")
    store.put(str(encoder), "memory://heads-test/model", recursive=True)
    try:
        cache = tmp_path / "cache"
        folder = resolve("memory://heads-test/model/heads/mine", cache_dir=cache)
        assert weights_digest(folder) == weights_digest(encoder / "heads" / "mine")
        loaded = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
        # The encoder is fetched once for both, and a tokenizer is looked for beside it.
        other = resolve("memory://heads-test/model/heads/other/", cache_dir=cache)
        assert other.parent == folder.parent
        assert resolve("memory://heads-test/model/heads/mine", cache_dir=cache) == folder
        alone = resolve("memory://heads-test/model/heads/mine", cache_dir=cache, weights=False)
        assert (alone / "config.json").read_bytes() == (encoder / "heads" / "mine" / "config.json").read_bytes()
        assert not list(alone.glob("*.safetensors"))
    finally:
        store.rm("memory://heads-test", recursive=True)
