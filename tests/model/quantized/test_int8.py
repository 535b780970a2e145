"""Products in eight bits: the formula, exact sums, and rows that do not depend on each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xlmr_ray import UserError
from xlmr_ray.model.quantized import int8
from xlmr_ray.model.quantized.int8 import Int8Linear, check_exact, eight_bits, quantize_rows


def layer(inputs, outputs, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (48, 40), (24, 8)])
def test_the_product_is_that_of_the_dequantized_numbers(inputs, outputs, bias):
    linear = layer(inputs, outputs, bias=bias)
    eight = Int8Linear(linear)
    x = torch.randn(33, inputs) * torch.logspace(-3, 3, 33)[:, None] + 1
    codes, scale, low = quantize_rows(x)
    weight = linear.weight.detach()
    scales = weight.abs().amax(1, keepdim=True) / 127
    wanted = (low + scale * codes).double() @ ((weight / scales).round() * scales).double().T
    wanted += 0 if linear.bias is None else linear.bias.double()
    assert ((eight(x) - wanted).abs() <= 1e-5 * wanted.abs().amax(1, keepdim=True)).all()


def test_weights_that_lie_by_columns_are_the_same_weights():
    linear = layer(64, 32)
    x = torch.randn(16, 64)
    wanted = Int8Linear(linear)(x)
    linear.weight.data = linear.weight.data.t().contiguous().t()
    assert torch.equal(Int8Linear(linear)(x), wanted)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=64),
)
def test_codes_span_a_rows_own_range_and_are_half_a_step_away_at_most(numbers):
    x = torch.tensor([numbers])
    codes, scale, low = quantize_rows(x)
    assert codes.min() == 0
    assert codes.max() == (127 if x.max() - x.min() > 127 * torch.finfo(torch.float32).tiny else 0)
    away = (low.double() + scale.double() * codes - x.double()).abs().max()
    assert away <= 0.5 * scale.double() * (1 + 1e-4) + 1e-6 * x.double().abs().max()


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 70), first=st.integers(0, 69), threads=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_row_has_the_same_bits_in_any_company(rows, first, threads, seed):
    torch.manual_seed(seed)
    eight = Int8Linear(layer(96, 48))
    x = torch.randn(140, 96)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(eight(x[first : first + rows]), eight(x)[first : first + rows])
    finally:
        torch.set_num_threads(before)


def test_sums_at_the_ends_of_the_range_are_exact():
    linear = nn.Linear(1536, 16, bias=False)
    linear.weight.data = torch.ones(16, 1536) * torch.tensor([1.0, -1.0]).repeat(8)[:, None]
    x = torch.ones(16, 1536)
    x[:, 0] = 0
    assert Int8Linear(linear)(x).abs().eq(1535).all()


def test_rows_that_are_constant_empty_or_no_numbers():
    eight = Int8Linear(layer(32, 16))
    assert eight(torch.zeros(0, 32)).shape == (0, 16)
    assert torch.allclose(eight(torch.full((2, 32), 3.0)), layer(32, 16)(torch.full((2, 32), 3.0)), atol=0.05)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.ones(2, 32)
        x[1, 5] = bad
        assert torch.isfinite(eight(x)[0]).all()
        assert not torch.isfinite(eight(x)[1]).any()


def test_every_linear_layer_is_replaced_and_nothing_else():
    module = nn.ModuleDict({"a": nn.Sequential(layer(8, 8), nn.LayerNorm(8)), "b": layer(8, 16)})
    eight_bits(module)
    kinds = [type(m).__name__ for m in module.modules()]
    assert kinds == ["ModuleDict", "Sequential", "Int8Linear", "LayerNorm", "Int8Linear"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            lambda *a: (_ for _ in ()).throw(RuntimeError("no such kernel\nmore")),
            "no such matmul here: no such kernel",
        ),
        (lambda *a: torch.zeros(16, 16), "overflow"),
    ],
)
def test_a_machine_that_cannot_is_refused_in_one_line(wrong, message, monkeypatch):
    check_exact.cache_clear()
    monkeypatch.setattr(int8, "int8_matmul", wrong)
    try:
        with pytest.raises(UserError, match=message):
            Int8Linear(layer(8, 8))
    finally:
        check_exact.cache_clear()
