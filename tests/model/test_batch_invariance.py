"""The check of this machine's kernels: silent where rows are independent, one line where they are not."""

import logging

import pytest
import torch
from torch import nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model import batch_invariance
from xlmr_ray.model.batch_invariance import largest_difference, pad_rows, rows_computed, warn_if_batch_dependent
from xlmr_ray.model.encoder import Layer
from xlmr_ray.model.linear import supported, use_onednn

CONFIG = XLMRobertaConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4)


class Rounding(nn.Module):
    """A layer whose kernel adds otherwise where rows are many."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, *others: object) -> torch.Tensor:
        out: torch.Tensor = self.layer(x, *others)
        return out if len(x) < 200 else out * (1 + 2**-20)


def made(dtype: torch.dtype) -> Layer:
    torch.manual_seed(0)
    layer = Layer(CONFIG).eval().requires_grad_(False).to(dtype)
    use_onednn(layer, prepack=True)
    return layer


def test_rows():
    assert [rows_computed(n) for n in (0, 1, 16, 17, 1000)] == [16, 16, 16, 32, 1008]
    padded = pad_rows(torch.ones(3, 2))
    assert padded.shape == (16, 2)
    assert float(padded.sum()) == 6


@pytest.mark.parametrize("dtype", [d for d in (torch.float32, torch.bfloat16) if supported(d)])
def test_this_machine_keeps_the_promise(dtype: torch.dtype, caplog: pytest.LogCaptureFixture):
    heads = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 3)]).requires_grad_(False).to(dtype)
    use_onednn(heads, prepack=False)
    assert largest_difference(made(dtype), heads, 64, dtype) == 0.0
    with caplog.at_level(logging.WARNING):
        warn_if_batch_dependent(made(dtype), heads, 64, dtype)
    assert not caplog.records


@pytest.mark.parametrize("where", ["layer", "head"])
def test_a_kernel_that_breaks_it_is_said_in_one_line(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batch_invariance, "_differences", {})
    layer, heads = made(torch.float32), nn.ModuleList([nn.Linear(1024, 8).requires_grad_(False)])
    if where == "layer":
        layer.output.dense = Rounding(layer.output.dense)
    else:
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x[:, :8] * (1 + len(x) / 2**20))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # looked at once, said at each load
            warn_if_batch_dependent(layer, heads, 64, torch.float32)
    assert len(caplog.records) == 2
    assert len(batch_invariance._differences) == 1
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    assert "float32 kernels round otherwise in a larger batch" in message
