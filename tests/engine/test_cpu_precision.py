"""What is said of a precision by what the CPU can do."""

import pytest
import torch

from xlmr_ray.engine.cpu_precision import BFLOAT16, FLOAT16, cpu_capabilities, precision_hint

AVX2 = {"avx2": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("dtype", "there", "said"),
    [
        (
            "float32",
            {**AVX2, "avx512_bf16": True, "amx_bf16": True},
            "has AMX: engine.dtype: bfloat16 is about 3 ",
        ),
        ("float32", {**AVX2, "avx512_bf16": True}, "AVX-512 BF16: engine.dtype: bfloat16 is about 1.4 "),
        ("bfloat16", AVX2, "no instructions for matmuls in bfloat16: engine.dtype: float32"),
        ("float16", {**AVX2, "avx512_bf16": True}, "no instructions for matmuls in float16"),
    ],
)
def test_what_is_said(dtype, there, said):
    assert said in precision_hint(dtype, None, there)


@pytest.mark.parametrize(
    ("dtype", "quantization", "there"),
    [
        ("float32", None, AVX2),
        ("bfloat16", None, {"amx_bf16": True}),
        ("float16", None, {"amx_fp16": True}),
        ("float32", "int8", {"amx_bf16": True}),
        ("bfloat16", None, {}),
    ],
)
def test_nothing_to_say(dtype, quantization, there):
    assert precision_hint(dtype, quantization, there) is None


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell")
def test_torch_knows_these_names():
    assert {*BFLOAT16, *FLOAT16} <= set(cpu_capabilities()) or "avx2" not in cpu_capabilities()
