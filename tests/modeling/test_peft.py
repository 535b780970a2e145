"""peft's adapters over our classes and over transformers': losses, logits, texts, and what is saved."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import xlmr_ray
from tests.modeling.classes import CLASSES, inputs, labels, make

TASKS = {
    "Model": "FEATURE_EXTRACTION",
    "ForCausalLM": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
KINDS: dict[str, Callable[[str], Any]] = {
    "lora": lambda task: peft.LoraConfig(
        task_type=task, r=4, init_lora_weights=False, target_modules=["query", "value"]
    ),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "p-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
}


def adapted(name: str, kind: str, library: Any) -> Any:
    theirs = make(name, transformers, max_position_embeddings=60)
    base = make(name, library, max_position_embeddings=60)
    base.load_state_dict(theirs.state_dict())
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, KINDS[kind](TASKS.get(name))).eval()


@pytest.mark.parametrize("name", CLASSES)
def test_lora(name: str, tmp_path: Path) -> None:
    theirs, ours = (adapted(name, "lora", library) for library in (transformers, xlmr_ray))
    given = {**inputs(name), **labels(name)}
    wanted, got = theirs(**given), ours(**given)
    for key in got:
        if key in ("loss", "logits", "last_hidden_state", "start_logits"):
            assert torch.allclose(got[key], wanted[key], atol=1e-5)
    ours.save_pretrained(tmp_path / "adapter")
    base = make(name, transformers, max_position_embeddings=60)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        reread, merged = again(**given), ours.merge_and_unload()(**given)
    for key in got:
        if key in ("loss", "logits", "last_hidden_state", "start_logits"):
            assert torch.allclose(reread[key], wanted[key], atol=1e-5)
            assert torch.allclose(merged[key], wanted[key], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_texts(kind: str) -> None:
    theirs, ours = (adapted("ForCausalLM", kind, library) for library in (transformers, xlmr_ray))
    ids = torch.tensor([[0, 7, 9, 12], [0, 8, 5, 30]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert ours(**given, labels=ids).loss.item() == pytest.approx(theirs(**given, labels=ids).loss.item(), abs=1e-5)
    for how in ({}, {"num_beams": 2}, {"use_cache": False}, {"num_return_sequences": 2, "num_beams": 2}):
        wanted, got = (m.generate(**given, max_new_tokens=5, do_sample=False, **how) for m in (theirs, ours))
        assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "prefix"])
@pytest.mark.filterwarnings("ignore")
def test_prompts_before_a_classifier(kind: str) -> None:
    name = "ForSequenceClassification"
    theirs, ours = (adapted(name, kind, library) for library in (transformers, xlmr_ray))
    wanted, got = (model(**inputs(name), **labels(name)) for model in (theirs, ours))
    assert torch.allclose(got.logits, wanted.logits, atol=1e-5)
    assert got.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-5)
