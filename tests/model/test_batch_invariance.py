"""The check of this machine's kernels: silent where rows are independent, one line where they are not."""

import logging

import pytest
import torch
from torch import nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model import batch_invariance, linear
from xlmr_ray.model.batch_invariance import keep_batch_invariance, largest_difference, pad_rows, rows_computed
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
        keep_batch_invariance(nn.ModuleList([made(dtype)]), heads, 64, dtype)
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
            keep_batch_invariance(nn.ModuleList([layer]), heads, 64, torch.float32)
    assert len(caplog.records) == 2
    assert len(batch_invariance._differences) == 2  # as they are, and in tiles
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    assert "float32 kernels round otherwise in a larger batch" in message


def test_a_kernel_that_chooses_by_the_number_of_rows_gets_tiles(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batch_invariance, "_differences", {})
    real = linear._onednn

    def choosing(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out = real(x, weight, bias)
        return out if len(x) < 144 else out * (1 + 2**-20)

    monkeypatch.setattr(linear, "_onednn", choosing)
    layers = nn.ModuleList([made(torch.float32), made(torch.float32)])
    heads = nn.ModuleList([nn.Linear(64, 3)]).requires_grad_(False)
    linear.use_onednn(heads, prepack=False)
    x = torch.randn(500, 64)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        wanted = layers[1].output.dense.forward(x[:100].repeat(1, 4))
        assert largest_difference(layers[0], heads, 64, torch.float32) > 0
        keep_batch_invariance(layers, heads, 64, torch.float32)
        assert not caplog.records
        assert largest_difference(layers[1], heads, 64, torch.float32) == 0
        assert torch.equal(layers[1].output.dense(x.repeat(1, 4))[:100], wanted)
        assert layers[0].attention.output.dense(x[:3].view(3, 1, 64)).shape == (3, 1, 64)
        assert heads[0](x[:0]).shape == (0, 3)
