"""Attention over packed sequences on the CPU by our own kernel (`model/kernels/attention.cpp`), for inference.

Torch's kernel gives its matmuls to MKL, which has no AVX-512 for other makers' CPUs than Intel's, and computes bfloat16
in float32 where there is no AMX. Ours took 0.8 to 0.9 of its time in float32 and 0.3 to 0.5 in bfloat16, for heads of
32 and 64 numbers and sequences of 17 to 4,096 tokens (one thread, an AMD EPYC with AVX-512 BF16).
"""

from functools import cache

import torch
from torch import Tensor

from xlmr_ray.model.kernels.library import available, cpu_capabilities, run
from xlmr_ray.model.layout import Packed

FUNCTIONS = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
# Float32 in a register: heads are of a multiple of as many numbers.
LANES = 16


@cache
def can_attend(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel is there, and this CPU has its instructions. Not on CPUs with AMX: torch uses that, and the
    kernel was not measured there.
    """
    fits = dtype in FUNCTIONS and head_dim % LANES == 0
    return fits and not cpu_capabilities().get("amx_bf16") and available(FUNCTIONS[dtype])


def attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: Packed) -> Tensor:
    """`q, k, v (T, heads, head_dim)` to the mixed values of the same shape. Only where `can_attend`, without gradients,
    and every token sees all of its sequence.
    """
    tokens, heads, head_dim = q.shape
    q, k, v = (x if x.stride()[1:] == (head_dim, 1) else x.contiguous() for x in (q, k, v))
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype)
    pointers = [x.data_ptr() for x in (q, k, v, out, layout.cu_seqlens)]
    strides = [x.stride(0) for x in (q, k, v)]
    run(FUNCTIONS[q.dtype], *pointers, len(layout.lengths), heads, head_dim, *strides, head_dim**-0.5)
    return out
