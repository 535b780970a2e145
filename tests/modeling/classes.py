"""The seven classes, tiny and equal in both libraries, and inputs for each."""

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import xlmr_ray

CLASSES = (
    "Model",
    "ForCausalLM",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
)
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}
IDS = torch.tensor([[0, 7, 9, 12, 2], [0, 8, 5, 2, 1]])


def make(name: str, library: ModuleType = xlmr_ray, **values: Any) -> Any:
    """A model in evaluation mode. The weights are those of one seed, in the order of the library."""
    torch.manual_seed(0)
    config = library.XLMRobertaConfig(**{**SHAPE, "is_decoder": name == "ForCausalLM", **values})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(library, f"XLMRoberta{name}")(config).eval()


def inputs(name: str, ids: Tensor = IDS) -> dict[str, Tensor]:
    """Ids `(B, S)`, or `(1, B, S)` of choices, and their mask."""
    given = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    return {key: x[None] for key, x in given.items()} if name == "ForMultipleChoice" else given


def labels(name: str, ids: Tensor = IDS, count: int = 2) -> dict[str, Tensor]:
    """What makes a loss for `inputs`; nothing for the class that has none."""
    rows = torch.arange(len(ids)) % count
    if name == "Model":
        return {}
    if name == "ForQuestionAnswering":
        return {"start_positions": rows, "end_positions": rows + 1}
    if name == "ForMultipleChoice":
        return {"labels": torch.tensor([1])}
    if name == "ForSequenceClassification":
        return {"labels": rows}
    return {"labels": ids if name.endswith("LM") else ids % count}
