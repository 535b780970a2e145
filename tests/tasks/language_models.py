"""Small masked and causal language models with random weights, saved by transformers, and texts to score."""

from pathlib import Path

import torch
import transformers

from tests.models import add_tokenizer, make_config

TEXTS = [
    "Hello World!",
    "人人生而自由,在尊严和权利上一律平等。",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "a",
    "👩‍👩‍👧 🇫🇷 é e\u0301",
    "All human beings are born free and equal in dignity and rights.",
    "<pad> a <pad><pad> padding id",
]
LONG = "All human beings are born free and equal in dignity and rights. " * 20


def save_causal(folder: Path) -> Path:
    torch.manual_seed(3)
    model = transformers.XLMRobertaForCausalLM(make_config(is_decoder=True))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return add_tokenizer(folder)


def save_masked(folder: Path) -> Path:
    torch.manual_seed(4)
    model = transformers.XLMRobertaForMaskedLM(make_config())
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return add_tokenizer(folder)


def same_bits_in_any_batch(pipe, texts):
    """A text's row is the same to the last bit with other texts, in another order, within other budgets, and alone."""
    whole = pipe.table(texts)
    backwards = whole.take(list(range(len(texts)))[::-1])
    for budget in (1, 90):
        pipe.engine.max_tokens = budget
        assert pipe.table(texts[::-1]).equals(backwards)
    assert pipe.table(texts[:1]).equals(whole.slice(0, 1))
