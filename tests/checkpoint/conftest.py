"""Tiny checkpoints with random weights, written by transformers (the oracle)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
    "num_labels": 3,
}
Make = Callable[..., Path]


def reference(kind: str = "XLMRobertaModel", *, seed: int = 0, **overrides: Any) -> Any:
    """A transformers model in which no tensor is as initialized: biases and norms are random too."""
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(transformers.XLMRobertaConfig(**{**SIZES, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05)
    return model.eval()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Saves a transformers model and gives its folder; `rename` and `extra` change its tensors, `as_bin` the format."""

    def build(
        kind: str = "XLMRobertaModel",
        *,
        rename: Callable[[str], str | None] = lambda name: name,
        extra: dict[str, Tensor] | None = None,
        as_bin: bool = False,
        dtype: torch.dtype | None = None,
        folder: str = "model",
        seed: int = 0,
        **overrides: Any,
    ) -> Path:
        model = reference(kind, seed=seed, **overrides)
        path = tmp_path / folder
        model.save_pretrained(path)
        file = path / "model.safetensors"
        state = {new: t for name, t in load_file(file).items() if (new := rename(name)) is not None}
        state |= extra or {}
        if dtype is not None:
            state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
        if as_bin:
            file.unlink()
            torch.save(state, path / "pytorch_model.bin")
        else:
            save_file(state, file, metadata={"format": "pt"})
        return path

    return build


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The same names, dtypes and bits."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
