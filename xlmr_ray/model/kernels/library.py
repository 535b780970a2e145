"""The compiled kernels, and the instructions that this CPU has for them."""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

# Compiled when the package is built, where there is a compiler: see hatch_build.py.
LIBRARY = Path(__file__).with_name("libkernels.so")
POINTER, INTEGER, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
ARGUMENTS = {
    "attend_float32": (*[POINTER] * 5, *[INTEGER] * 6, FLOAT),
    "attend_bfloat16": (*[POINTER] * 5, *[INTEGER] * 6, FLOAT),
    "quantize_bfloat16": (*[POINTER] * 4, *[INTEGER] * 2),
    "dequantize_bfloat16": (*[POINTER] * 6, *[INTEGER] * 2),
}


def available(name: str) -> bool:
    """Whether a kernel was compiled and this CPU has its instructions: those of bfloat16 need AVX-512 BF16."""
    return library() is not None and (name.endswith("_float32") or bool(cpu_capabilities().get("avx512_bf16")))


def run(name: str, *arguments: int | float) -> None:
    """Calls a kernel, by name where a profiler looks on. Only where it is `available`."""
    kernel = getattr(library(), name)
    if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
        with torch.profiler.record_function(f"kernels::{name}"):
            kernel(*arguments)
    else:
        kernel(*arguments)  # naming a call takes as long as a kernel does over one short text


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not compiled, this CPU lacks the instructions that all of them have,
    or torch brings another OpenMP than they were compiled for.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        for name, arguments in ARGUMENTS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, None
    except (OSError, AttributeError):  # the latter of one that an older source was compiled to
        return None
    return found


@cache
def cpu_capabilities() -> Mapping[str, object]:
    """The CPU's instructions by torch's names; empty where torch does not tell."""
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return found
