"""Products in eight bits: the formula, exact sums, and rows that do not depend on each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xlmr_ray import UserError
from xlmr_ray.model.kernels.library import available
from xlmr_ray.model.quantized import int8
from xlmr_ray.model.quantized.int8 import (
    LARGEST_CODES,
    Int8Linear,
    check_exact,
    eight_bits,
    half_rows,
    quantize_half_rows,
    quantize_rows,
)


def exact_with(dtype):
    """Whether this CPU adds products of the dtype's codes without overflow."""
    try:
        check_exact(LARGEST_CODES[dtype])
    except UserError:
        return False
    return True


DTYPES = [dtype for dtype in LARGEST_CODES if exact_with(dtype)]
# By the kernels where these are there, and by torch.
KERNELS = available("quantize_bfloat16")
WAYS = [*([True] if KERNELS else []), False]


def layer(inputs, outputs, seed=0, bias=True, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (48, 40), (24, 8)])
def test_the_product_is_that_of_the_dequantized_numbers(inputs, outputs, bias, dtype):
    linear = layer(inputs, outputs, bias=bias, dtype=dtype)
    eight = Int8Linear(linear)
    x = (torch.randn(33, inputs) * torch.logspace(-3, 3, 33)[:, None] + 1).to(dtype)
    codes, scale, low = (quantize_rows if dtype is torch.float32 else quantize_half_rows)(x)
    weight = linear.weight.detach().float()
    scales = weight.abs().amax(1, keepdim=True) / 127
    wanted = (low + scale * codes).double() @ ((weight / scales).round() * scales).double().T
    wanted += 0 if linear.bias is None else linear.bias.double()
    assert eight(x).dtype is dtype
    near = 1e-5 if dtype is torch.float32 else 2**-8
    assert ((eight(x) - wanted).abs() <= near * wanted.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("kernels", WAYS)
def test_rows_of_bfloat16_lose_half_a_step(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(int8, "available", lambda name: False)
    for columns in (1, 15, 16, 40, 384):
        x = (torch.randn(50, columns) * torch.logspace(-30, 30, 50)[:, None] + 1).bfloat16()
        codes, scale, low = quantize_half_rows(x)
        assert codes.dtype is torch.uint8
        assert (codes.amin(1) == 0).all()
        assert ((codes.amax(1) == 255) | (x.amax(1) == x.amin(1))).all()
        away = (low.double() + scale.double() * codes - x.double()).abs()
        assert (away <= 0.5001 * scale + 1e-6 * x.abs()).all()
    assert [len(part) for part in quantize_half_rows(x[:0])] == [0, 0, 0]


@pytest.mark.skipif(not KERNELS, reason="no kernels for this CPU")
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 40), columns=st.integers(1, 200), seed=st.integers(0, 99))
def test_kernels_and_torch_are_the_same(rows, columns, seed):
    torch.manual_seed(seed)
    x = (torch.randn(rows, columns) * 10 ** torch.randn(rows, 1)).bfloat16()
    x[x > 20] = float("nan")
    x[x < -20] = float("inf")
    products, bias, sums = torch.randn(rows, columns), torch.randn(columns), torch.randn(columns)
    ours = quantize_half_rows(x)
    ours_back = half_rows(products, *ours[1:], bias, sums)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "available", lambda name: False)
        torchs = quantize_half_rows(x)
        torchs_back = half_rows(products, *ours[1:], bias, sums)
    # Of a row with a number that is none, only that it stays one.
    fine = x.float().isfinite().all(1)
    for one, other in zip(ours, torchs, strict=True):
        assert torch.equal(one[fine], other[fine])
    assert not ours_back[~fine].isfinite().any()
    largest = torchs_back[fine].abs().float()
    assert ((ours_back[fine] - torchs_back[fine]).abs() <= 2**-7 * largest + 1e-6).all()


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


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 70), first=st.integers(0, 69), threads=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_row_has_the_same_bits_in_any_company(rows, first, threads, seed, dtype):
    torch.manual_seed(seed)
    eight = Int8Linear(layer(96, 48, dtype=dtype))
    x = torch.randn(140, 96).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(eight(x[first : first + rows]), eight(x)[first : first + rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_at_the_ends_of_the_range_are_exact(dtype):
    linear = nn.Linear(1537, 16, bias=False)
    linear.weight.data = (torch.ones(16, 1537) * torch.tensor([1.0, -1.0]).repeat(8)[:, None]).to(dtype)
    x = torch.ones(16, 1537, dtype=dtype)
    x[:, 0] = 0
    assert Int8Linear(linear)(x).abs().eq(1536).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_constant_empty_or_no_numbers(dtype):
    plain = layer(32, 16, dtype=dtype)
    eight = Int8Linear(plain)
    assert eight(torch.zeros(0, 32, dtype=dtype)).shape == (0, 16)
    three = torch.full((2, 32), 3.0, dtype=dtype)
    assert torch.allclose(eight(three), plain(three), atol=0.05)
    for bad in (float("nan"), float("inf"), float("-inf")):
        x = torch.ones(2, 32, dtype=dtype)
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
