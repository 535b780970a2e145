"""What is said of a precision by what the CPU can do."""

import pytest
import torch

from xlmr_ray.engine import cpu_precision
from xlmr_ray.engine.cpu_precision import BFLOAT16, FLOAT16, has_instructions, kernels_hint, precision_hint
from xlmr_ray.model.kernels.library import cpu_capabilities

AVX2 = {"avx2": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("dtype", "there", "said"),
    [
        (
            "float32",
            {**AVX2, "avx512_bf16": True, "amx_bf16": True},
            "has AMX: engine.dtype: bfloat16 is about 3 ",
        ),
        ("float32", {**AVX2, "avx512_bf16": True}, "AVX-512 BF16: engine.dtype: bfloat16 is about 1.9 "),
        ("float32", {**AVX2, "avx512_bf16": True}, "2.5 times with quantization: int8 beside it"),
        ("bfloat16", AVX2, "no instructions for matmuls in bfloat16: engine.dtype: float32"),
        ("float16", {**AVX2, "avx512_bf16": True}, "no instructions for matmuls in float16"),
    ],
)
def test_what_is_said(dtype, there, said):
    assert said in precision_hint(dtype, None, there)


@pytest.mark.parametrize(
    ("dtype", "there", "said"),
    [
        (
            "float32",
            {"avx512_bf16": True, "amx_bf16": True},
            "bfloat16 without int8 is faster, and nearer",
        ),
        ("float32", {"avx512_bf16": True}, "bfloat16 beside int8 is faster, and nearer"),
        ("bfloat16", AVX2, "no instructions for matmuls in bfloat16"),
    ],
)
def test_what_is_said_of_int8(dtype, there, said):
    assert said in precision_hint(dtype, "int8", there)


def test_what_is_said_where_the_kernels_are_not_compiled(monkeypatch):
    zen4 = {**AVX2, "avx512_bf16": True}
    monkeypatch.setattr(cpu_precision, "library", lambda: object())
    assert kernels_hint(zen4) is None
    monkeypatch.setattr(cpu_precision, "library", lambda: None)
    assert "compiled at the installation, where g++ is there" in kernels_hint(zen4)
    assert kernels_hint(AVX2) is None
    assert kernels_hint({**zen4, "amx_bf16": True}) is None


@pytest.mark.parametrize(
    ("dtype", "quantization", "there"),
    [
        ("float32", None, AVX2),
        ("bfloat16", None, {"amx_bf16": True}),
        ("float16", None, {"amx_fp16": True}),
        ("float32", "int8", AVX2),
        ("bfloat16", "int8", {"avx512_bf16": True}),
        ("float32", "nf4", {"amx_bf16": True}),
        ("bfloat16", None, {}),
    ],
)
def test_nothing_to_say(dtype, quantization, there):
    assert precision_hint(dtype, quantization, there) is None


def test_what_there_are_instructions_for():
    every = ("float32", "bfloat16", "float16", "auto")
    for there, wanted in (
        ({}, {"float32", "auto"}),
        (AVX2, {"float32", "auto"}),
        ({"avx512_bf16": True}, {"float32", "auto", "bfloat16"}),
        ({"amx_bf16": True, "amx_fp16": True}, set(every)),
    ):
        assert {dtype for dtype in every if has_instructions(dtype, there)} == wanted


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell")
def test_torch_knows_these_names():
    assert {*BFLOAT16, *FLOAT16} <= set(cpu_capabilities()) or "avx2" not in cpu_capabilities()
