"""LoRA adapters as peft saves them: a checkpoint whose numbers are peft's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from xlmr_ray import XLMRobertaForSequenceClassification, XLMRobertaModel, XLMRobertaTokenizer, pipeline
from xlmr_ray.checkpoint.adapter import base_name
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.errors import UserError

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]
KINDS: dict[str, dict[str, Any]] = {
    "usual": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "all linear layers": {"r": 2, "target_modules": ["query", "key", "value", "dense"]},
    "patterns": {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"layer.0.attention.self.value": 32}},
    "embeddings": {"r": 4, "target_modules": ["word_embeddings", "query"]},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLMR_RAY_CACHE", str(tmp_path / "cache"))


def encoder(folder: Path) -> Any:
    return transformers.XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)


def adapted(base: Any, folder: Path, **options: Any) -> Any:
    """The base with a random adapter, which is saved in the folder."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"init_lora_weights": False, "target_modules": ["query", "value"], **options})
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_as_peft_has_it(mini: Path, tmp_path: Path, kind: str) -> None:
    base = encoder(mini)
    model = adapted(base, tmp_path / "adapter", task_type="FEATURE_EXTRACTION", **KINDS[kind])
    ours = XLMRobertaModel.from_pretrained(tmp_path / "adapter", add_pooling_layer=False, dtype=torch.float32)
    inputs = XLMRobertaTokenizer.from_pretrained(mini)(TEXTS, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted, got = model(**inputs).last_hidden_state, ours(**inputs).last_hidden_state
    torch.testing.assert_close(got[mask], wanted[mask], atol=1e-5, rtol=0)
    plain = XLMRobertaModel.from_pretrained(mini, add_pooling_layer=False, dtype=torch.float32)
    with torch.no_grad():
        assert (plain(**inputs).last_hidden_state[mask] - got[mask]).abs().max() > 1e-2


def test_a_head_that_came_with_the_adapter(mini: Path, tmp_path: Path) -> None:
    base = transformers.XLMRobertaForSequenceClassification.from_pretrained(
        mini, num_labels=3, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    model = adapted(base, tmp_path / "adapter", task_type="SEQ_CLS")
    ours = XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    inputs = XLMRobertaTokenizer.from_pretrained(mini)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    labels = pipeline("text-classification", tmp_path / "adapter", top_k=None)(TEXTS[0])
    assert {one["label"] for one in labels[0]} == {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_the_names_of_labels_are_the_base_s(mini: Path, tmp_path: Path) -> None:
    """As transformers loads the base under an adapter; where their number is another, as without names."""
    shutil.copytree(mini, tmp_path / "base")
    base = transformers.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = adapted(base, tmp_path / "adapter", task_type="SEQ_CLS")
    ours = XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert ours.config.id2label == model.config.id2label
    assert "en" in ours.config.label2id
    # Other names for the same weights.
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text("utf-8").replace('"en"', '"English"'), "utf-8")
    assert "English" in XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "adapter").config.label2id


def test_a_calibration_of_the_base(mini: Path, tmp_path: Path) -> None:
    """It was measured of the base's scores; those with an adapter, merged or beside it, are peft's."""
    shutil.copytree(mini, tmp_path / "base")
    values = {"text-classification": {"temperature": 4.0, "thresholds": {"en": 0.5}}}
    (tmp_path / "base" / "calibration.json").write_text(json.dumps(values), "utf-8")
    base = transformers.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = adapted(base, tmp_path / "adapter", task_type="SEQ_CLS")
    with torch.no_grad():
        inputs = XLMRobertaTokenizer.from_pretrained(mini)(TEXTS, padding=True, return_tensors="pt")
        expected = model(**inputs).logits.softmax(-1).max(1).values.tolist()
    how: dict[str, Any] = {"dtype": "float32", "device": "cpu"}
    merged = pipeline("text-classification", tmp_path / "adapter", **how)
    beside = pipeline("text-classification", tmp_path / "base", adapters={"one": tmp_path / "adapter"}, **how)
    for pipe in (merged, beside):
        answers = pipe(TEXTS)
        assert [one["score"] for one in answers] == pytest.approx(expected, abs=1e-5)
        assert all(one.keys() == {"label", "score"} for one in answers)


def test_the_base_s_revision(mini: Path, tmp_path: Path) -> None:
    adapted(encoder(mini), tmp_path / "adapter", revision="v2")
    assert base_name(tmp_path / "adapter") == str(mini)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text("utf-8").replace(str(mini), "team/model"), "utf-8")
    assert base_name(tmp_path / "adapter") == "team/model@v2"


CHANGED: dict[str, dict[str, Any]] = {
    "init_lora_weights 'pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights 'olora'": {"init_lora_weights": "olora"},
    "trainable_token_indices": {"trainable_token_indices": [5, 9]},
    "use_dora": {"use_dora": True},
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_would_give_other_numbers(mini: Path, tmp_path: Path, what: str) -> None:
    adapted(encoder(mini), tmp_path / "adapter", **CHANGED[what])
    with pytest.raises(UserError, match=f"{what} is not supported"):
        resolve(tmp_path / "adapter")


def test_it_is_merged_once(mini: Path, tmp_path: Path) -> None:
    base = encoder(mini)
    adapted(base, tmp_path / "adapter")
    folder = resolve(tmp_path / "adapter")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert resolve(tmp_path / "adapter") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    adapted(encoder(mini), tmp_path / "other", r=2)
    assert resolve(tmp_path / "other") != folder
    assert not list(folder.parent.glob(".merging.*"))


def test_what_is_no_such_adapter(mini: Path, tmp_path: Path) -> None:
    base = encoder(mini)
    peft.get_peft_model(
        base, peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION")
    ).save_pretrained(tmp_path / "prefix")
    with pytest.raises(UserError, match="an adapter of kind PREFIX_TUNING, expected LORA"):
        resolve(tmp_path / "prefix")
    wide = transformers.XLMRobertaModel(transformers.XLMRobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64))  # fmt: skip
    wide.name_or_path = wide.config._name_or_path = str(mini)
    adapted(wide, tmp_path / "wide")
    with pytest.raises(UserError, match="of shape"):
        resolve(tmp_path / "wide")
