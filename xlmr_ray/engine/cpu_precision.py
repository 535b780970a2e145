"""What a CPU's matrix instructions mean for the precision that a user chose: said, never done in silence."""

from collections.abc import Mapping

import torch

# Instructions for matmuls in bfloat16, by torch's names, and how many times as fast as float32 e5-small was with them:
# 96 help pages on two cores of a Xeon with AMX, 40 on two of an AMD EPYC with AVX-512 BF16; medians of five rounds.
BFLOAT16 = {"amx_bf16": ("AMX", 3.0), "avx512_bf16": ("AVX-512 BF16", 1.4)}
FLOAT16 = ("amx_fp16", "avx512_fp16")


def cpu_capabilities() -> Mapping[str, object]:
    """The CPU's instructions by name; empty where torch does not tell."""
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def precision_hint(dtype: str, quantization: str | None, there: Mapping[str, object]) -> str | None:
    """A line about another `dtype` that serves better on a CPU with the instructions `there`; None where there is
    nothing to say.
    """
    if quantization is not None or not there:
        return None
    has = next((BFLOAT16[name] for name in BFLOAT16 if there.get(name)), None)
    if dtype == "float32" and has:
        name, times = has
        return (
            f"this CPU has {name}: engine.dtype: bfloat16 is about {times:g} times as fast, with other last digits "
            "(cosine at least 0.9999 with e5); xlmr-ray bench --quality measures both"
        )
    if (dtype == "bfloat16" and not has) or (dtype == "float16" and not any(there.get(name) for name in FLOAT16)):
        return f"this CPU has no instructions for matmuls in {dtype}: engine.dtype: float32 is faster here, and exact"
    return None
