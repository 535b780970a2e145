"""What a CPU's instructions mean for the precision that a user chose: said, never done in silence."""

from collections.abc import Mapping

from xlmr_ray.model.kernels.library import library

# Instructions for matmuls in bfloat16, by torch's names, and how many times as fast as float32 e5-small was with them:
# 96 help pages on two cores of a Xeon with AMX, 32 on two of an AMD EPYC with AVX-512 BF16; medians of rounds in turn.
BFLOAT16 = {"amx_bf16": ("AMX", 3.0), "avx512_bf16": ("AVX-512 BF16", 1.9)}
# With `quantization: int8` beside bfloat16, on the second of these; not measured with AMX.
WITH_INT8 = {"avx512_bf16": 2.5}
FLOAT16 = ("amx_fp16", "avx512_fp16")
MEASURE = "xlmr-ray bench --quality measures them"


def has_instructions(dtype: str, there: Mapping[str, object]) -> bool:
    """Whether a CPU with the instructions `there` has some for matmuls in that dtype."""
    needed = {"bfloat16": tuple(BFLOAT16), "float16": FLOAT16}.get(dtype)
    return needed is None or any(there.get(name) for name in needed)


def precision_hint(dtype: str, quantization: str | None, there: Mapping[str, object]) -> str | None:
    """A line about another precision that serves better on a CPU with the instructions `there`; None where there is
    nothing to say.
    """
    if quantization not in (None, "int8") or not there:
        return None
    if not has_instructions(dtype, there):
        return f"this CPU has no instructions for matmuls in {dtype}: engine.dtype: float32 is faster here, and exact"
    has = next((name for name in BFLOAT16 if there.get(name)), None)
    if dtype != "float32" or has is None:
        return None
    name, times = BFLOAT16[has]
    eight = WITH_INT8.get(has)
    if quantization is None:
        and_int8 = f", and {eight:g} times with quantization: int8 beside it (0.9995)" if eight else ""
        return (
            f"this CPU has {name}: engine.dtype: bfloat16 is about {times:g} times as fast, with other last digits "
            f"(cosine at least 0.9999 with e5){and_int8}; {MEASURE}"
        )
    better = "beside int8" if eight else "without int8"
    return f"this CPU has {name}: engine.dtype: bfloat16 {better} is faster, and nearer to float32; {MEASURE}"


def kernels_hint(there: Mapping[str, object]) -> str | None:
    """A line where this CPU has instructions for the kernels of `model/kernels/`, and these were not compiled."""
    if not there.get("avx512_bf16") or there.get("amx_bf16") or library() is not None:
        return None
    return "attention is torch's, not the kernel for this CPU: that is compiled at the installation, where g++ is there"
