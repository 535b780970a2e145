"""Our kernel for CPUs with AVX-512: against softmax in float64, and the same bits whatever else is there."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xlmr_ray.model.attention import avx512
from xlmr_ray.model.attention.avx512 import attend_packed, can_attend
from xlmr_ray.model.attention.backends import ATTENTION
from xlmr_ray.model.kernels import library
from xlmr_ray.model.layout import Packed

# A machine without the kernel, or its instructions, has nothing to test here; tests/test_build.py says that it is there
# where it can be.
HERE = [dtype for dtype in (torch.float32, torch.bfloat16) if can_attend(dtype, 32)]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
pytestmark = pytest.mark.skipif(not HERE, reason="no kernel for this CPU")
both = pytest.mark.parametrize("dtype", HERE)


def tensors(lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Queries, keys and values as an encoder has them: thirds of one tensor."""
    random = torch.Generator().manual_seed(seed)
    fused = torch.randn(sum(lengths), 3, heads, head_dim, generator=random).to(dtype)
    return list(fused.unbind(1))


def exact(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """In float64, each sequence by itself: `(T, heads, head_dim)`."""
    parts = []
    for q1, k1, v1 in zip(*(x.double().transpose(0, 1).split(lengths, 1) for x in (q, k, v)), strict=True):
        chances = torch.softmax(q1 @ k1.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
        parts.append((chances @ v1).transpose(0, 1))
    return torch.cat(parts)


@both
@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    lanes=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_the_same_as_in_float64(dtype: torch.dtype, lengths: list[int], heads: int, lanes: int, seed: int):
    q, k, v = tensors(lengths, heads, 16 * lanes, dtype, seed)
    got = attend_packed(q, k, v, Packed.of(lengths))
    assert got.shape == q.shape
    assert got.dtype is dtype
    wanted = exact(q, k, v, lengths)
    assert (got - wanted).abs().max() <= ROUNDING[dtype] * (1 + wanted.abs().max())


@both
@settings(deadline=None, max_examples=30)
@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=5), lanes=st.integers(1, 5), chosen=st.integers(0, 4))
def test_the_same_bits_alone_and_by_any_threads(dtype: torch.dtype, lengths: list[int], lanes: int, chosen: int):
    q, k, v = tensors(lengths, 2, 16 * lanes, dtype)
    place = chosen % len(lengths)
    own = slice(sum(lengths[:place]), sum(lengths[: place + 1]))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(attend_packed(q, k, v, Packed.of(lengths))[own])
            found.append(attend_packed(q[own], k[own], v[own], Packed.of([lengths[place]])))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@both
def test_long_sequences_and_large_scores(dtype: torch.dtype):
    """2,500 keys are several sums of sums; scores of 1,000 leave one key all of it."""
    lengths = [2500, 3]
    q, k, v = tensors(lengths, 1, 64, dtype)
    for factor in (1, 30):
        wanted = exact(q * factor, k * factor, v, lengths)
        got = attend_packed(q * factor, k * factor, v, Packed.of(lengths))
        assert (got - wanted).abs().max() <= 20 * ROUNDING[dtype] * (1 if factor == 1 else 40)


@both
def test_a_value_that_is_no_number_stays_one_in_its_sequence_only(dtype: torch.dtype):
    lengths = [20, 5, 70]
    wanted = attend_packed(*tensors(lengths, 2, 32, dtype), Packed.of(lengths))
    for place in range(3):
        for bad in (math.nan, math.inf):
            three = [x.clone() for x in tensors(lengths, 2, 32, dtype)]
            three[place][22] = bad  # in the sequence in the middle
            got = attend_packed(*three, Packed.of(lengths))
            assert not got[20:25].isfinite().all()
            assert torch.equal(got[:20], wanted[:20])
            assert torch.equal(got[25:], wanted[25:])


@both
def test_what_it_cannot_do_is_for_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    lengths = [7, 7, 30]
    asked: list[int] = []

    def counted(q: Tensor, k: Tensor, v: Tensor, layout: Packed) -> Tensor:
        asked.append(len(q))
        return attend_packed(q, k, v, layout)

    monkeypatch.setattr("xlmr_ray.model.attention.backends.attend_packed", counted)
    q, k, v = tensors(lengths, 2, 32, dtype)
    got, _ = ATTENTION["auto"](q, k, v, Packed.of(lengths), 0.0)
    assert len(asked) == 1
    wanted, _ = ATTENTION["sdpa"](q, k, v, Packed.of(lengths), 0.0)
    assert (got - wanted).abs().max() <= 4 * ROUNDING[dtype]
    for layout, dropout, head_dim, gradient in (
        (Packed.of(lengths, causal=True), 0.0, 32, False),
        (Packed.of(lengths), 0.5, 32, False),
        (Packed.of(lengths), 0.0, 24, False),
        (Packed.of(lengths), 0.0, 32, True),
    ):
        q, k, v = (x.requires_grad_(gradient) for x in tensors(lengths, 2, head_dim, torch.float32))
        out, _ = ATTENTION["auto"](q, k, v, layout, dropout)
        assert out.requires_grad is gradient
    assert len(asked) == 1


def test_heads_that_are_not_one_after_another():
    """Views of any strides give what copies of them give."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors([9, 4], 3, 32, HERE[0]))
    assert q.stride(-1) != 1
    whole = attend_packed(*(x.contiguous() for x in (q, k, v)), Packed.of([9, 4]))
    assert torch.equal(attend_packed(q, k, v, Packed.of([9, 4])), whole)


def test_only_where_it_was_measured(monkeypatch: pytest.MonkeyPatch):
    """A CPU with AMX has torch's kernel; one without AVX-512 BF16 none of ours in bfloat16."""
    for there, wanted in (
        ({"avx512_bf16": True, "amx_bf16": True}, [False, False]),
        ({"avx512_bf16": False}, [True, False]),
        ({"avx512_bf16": True}, [True, True]),
    ):
        for module in (avx512, library):
            monkeypatch.setattr(module, "cpu_capabilities", lambda there=there: there)
        can_attend.cache_clear()
        assert [can_attend(dtype, 64) for dtype in (torch.float32, torch.bfloat16)] == wanted
        assert not can_attend(torch.float16, 64)
        assert not can_attend(torch.float32, 40)
    can_attend.cache_clear()
