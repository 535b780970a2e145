"""A class of the user's: another head on the encoder, with the base class and the calls of transformers."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import xlmr_ray
from tests.modeling.classes import CLASSES, IDS, SHAPE, inputs, make


def two_heads(library: ModuleType) -> Any:
    """A class with two classifiers over the mean of a text's tokens."""

    class TwoHeads(library.XLMRobertaPreTrainedModel):  # type: ignore[name-defined,misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.roberta = library.XLMRobertaModel(config, add_pooling_layer=False)
            self.dropout = nn.Dropout(config.hidden_dropout_prob)
            self.topic = nn.Linear(config.hidden_size, 3)
            self.tone = nn.Linear(config.hidden_size, 2)
            self.post_init()

        def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Any:
            hidden = self.roberta(input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask[..., None].float()
            mean = self.dropout((hidden * weights).sum(1) / weights.sum(1))
            topic = self.topic(mean)
            loss = None if labels is None else nn.functional.cross_entropy(topic, labels)
            return {"logits": topic, "tone": self.tone(mean)} | ({} if loss is None else {"loss": loss})

    return TwoHeads


def test_another_head(tmp_path: Path) -> None:
    make("ForMaskedLM", transformers).save_pretrained(tmp_path / "encoder")
    ours, theirs = two_heads(xlmr_ray), two_heads(transformers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ours.from_pretrained(tmp_path / "encoder")
        reference = theirs.from_pretrained(tmp_path / "encoder")
    assert {*model.load_report.missing} == {
        f"{head}.{part}" for head in ("topic", "tone") for part in ("weight", "bias")
    }
    assert abs(float(model.topic.weight.detach().std()) - SHAPE["initializer_range"]) < 0.1
    assert not model.tone.bias.any()
    reference.load_state_dict(model.state_dict())
    got, wanted = (one.eval()(**inputs("ForSequenceClassification")) for one in (model, reference))
    assert all(torch.allclose(got[key], wanted[key], atol=1e-5) for key in wanted)
    model.save_pretrained(tmp_path / "trained")
    for library_class in (ours, theirs):
        again = library_class.from_pretrained(tmp_path / "trained").eval()
        assert torch.allclose(again(**inputs("ForSequenceClassification"))["logits"], wanted["logits"], atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_what_libraries_ask_of_the_class(name: str) -> None:
    ours, theirs = (getattr(library, f"XLMRoberta{name}") for library in (xlmr_ray, transformers))
    for one in ("supports_gradient_checkpointing", "_supports_sdpa", "_supports_flash_attn", "_keep_in_fp32_modules"):
        assert getattr(ours, one) == getattr(theirs, one), one
    model = make(name)
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds.issuperset(model._no_split_modules)
    fresh = ours._from_config(model.config)
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert fresh(**inputs(name, IDS))


@pytest.mark.parametrize("name", CLASSES)
def test_weights_that_are_there_are_not_made_anew(name: str) -> None:
    model = make(name)
    for own in (model, two_heads(xlmr_ray)(model.config)):
        before = {key: tensor.clone() for key, tensor in own.state_dict().items()}
        own.post_init()
        own.init_weights()
        assert all(torch.equal(before[key], tensor) for key, tensor in own.state_dict().items())
    model.resize_token_embeddings(50)
    grown = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.post_init()
    assert all(torch.equal(grown[key], tensor) for key, tensor in model.state_dict().items())
