"""Attention kernels over sequences of different lengths, lifted to both layouts; and torch's own, `varlen_attn`.

They take packed tokens as they are. Padded ones lose their padding first: found once a forward pass, not once a layer.
"""

import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.errors import UserError
from xlmr_ray.model.layout import Layout, Packed, Padded

HALF = (torch.float16, torch.bfloat16)
DEVICES = ("cuda",)
# What all of these kernels hold to: the generation of GPUs from which they run, and the shape of a head.
CAPABILITY = (8, 0)
HEAD_DIM, HEAD_DIM_STEP = 256, 8


@dataclass(frozen=True)
class Lengths:
    """N sequences of queries and of keys one after another: `cu_q`, `cu_k` are `int32 (N + 1)`, where each starts;
    `max_q`, `max_k` at least the longest.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int


@dataclass(frozen=True, eq=False)
class Unpadded:
    """Padded tokens without their padding. `q_indices`, `k_indices`: the tokens that stay, as indices into
    the flat `(B * S)`; None where all of them do.
    """

    lengths: Lengths
    q_indices: Tensor | None
    k_indices: Tensor | None

    def fits(self, q: Tensor, k: Tensor) -> bool:
        """Whether it was made of queries `(B, S, ...)` and keys `(B, S', ...)` of these sizes, on their device."""
        made_of = (len(self.lengths.cu_q) - 1, self.lengths.max_q, self.lengths.max_k, self.lengths.cu_q.device)
        return made_of == (*q.shape[:2], k.shape[1], q.device)


# (q, k, v, lengths, scale, causal, dropout) -> out; q and out are (T, heads, head_dim), k and v (T', heads, head_dim).
Kernel = Callable[[Tensor, Tensor, Tensor, Lengths, float, bool, float], Tensor]

unpadded_layouts: weakref.WeakKeyDictionary[Padded, Unpadded] = weakref.WeakKeyDictionary()


def back_end_of(
    name: str, kernel: Kernel, *, dtypes: tuple[torch.dtype, ...] = HALF, dropouts: bool, gradients: bool = True
) -> Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, None]]:
    """The back end of that name (see `backends.py`) out of a kernel; `dtypes`, `dropouts` and `gradients` say
    what the kernel can do.

    Raises UserError, when called, for tensors and masks that it cannot do.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float) -> tuple[Tensor, None]:
        check_tensors(name, q.device, q.dtype, q.shape[-1], dtypes)
        if dropout and not dropouts:
            raise UserError(
                f"{name} has no dropout, attention_probs_dropout_prob is {dropout}: set it to 0, or use "
                "attn_implementation sdpa for training"
            )
        if not gradients and torch.is_grad_enabled() and q.requires_grad:
            raise UserError(
                f"{name}: the package installed computes no gradients; use attn_implementation sdpa for training, "
                "torch.no_grad() for inference"
            )
        scale = q.shape[-1] ** -0.5
        missing = -q.shape[-1] % HEAD_DIM_STEP
        if missing:
            q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
        if isinstance(layout, Packed):
            longest = layout.max_seqlen
            lengths = Lengths(layout.cu_seqlens, layout.cu_seqlens, longest, longest)
            out = kernel(q, k, v, lengths, scale, layout.causal, dropout)
        else:
            out = over_padded(name, kernel, q, k, v, layout, scale, dropout)
        return out[..., : out.shape[-1] - missing], None

    return attend


@cache
def check_tensors(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raises UserError where the kernels cannot do such tensors: one line with got and expected."""
    expected = " or ".join(dtype_name(dtype) for dtype in dtypes)
    if device.type not in DEVICES or dtype not in dtypes:
        raise UserError(
            f"{name}: got {dtype_name(dtype)} on {device}, expected {expected} on a GPU; use attn_implementation sdpa"
        )
    if head_dim > HEAD_DIM:
        raise UserError(
            f"{name}: got heads of {head_dim} numbers, expected at most {HEAD_DIM}; use attn_implementation sdpa"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        got = "{}.{}".format(*torch.cuda.get_device_capability(device))
        raise UserError(
            f"{name}: got a GPU of compute capability {got} ({torch.cuda.get_device_name(device)}), "
            "expected 8.0 or newer; use attn_implementation sdpa"
        )


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def over_padded(
    name: str, kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, layout: Padded, scale: float, dropout: float
) -> Tensor:
    """`q (B, S, heads, head_dim)`, `k, v (B, S', heads, head_dim)` without their padding through the kernel, and back
    to the shape of `q`.
    """
    unpadded = unpadded_layouts.get(layout)
    if unpadded is None or not unpadded.fits(q, k):
        unpadded = unpadded_layouts[layout] = unpad(name, layout, q, k)
    flat_q, flat_k, flat_v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if unpadded.k_indices is not None:
        flat_k, flat_v = flat_k[unpadded.k_indices], flat_v[unpadded.k_indices]
    if unpadded.q_indices is None:
        return kernel(flat_q, flat_k, flat_v, unpadded.lengths, scale, layout.causal, dropout).view(q.shape)
    out = kernel(flat_q[unpadded.q_indices], flat_k, flat_v, unpadded.lengths, scale, layout.causal, dropout)
    return flat_q.new_zeros(flat_q.shape).index_copy(0, unpadded.q_indices, out).view(q.shape)


def unpad(name: str, layout: Padded, q: Tensor, k: Tensor) -> Unpadded:
    """What stays of the queries `(B, S, ...)` and the keys `(B, S', ...)` of a layout.

    Keys that the mask hides are dropped. Queries are only dropped with them where a causal kernel counts back from
    the last key: elsewhere they cost little, their answers are those of the other back ends, and in cross-attention
    the mask says nothing about them.
    """
    (batch, queries), keys = q.shape[:2], k.shape[1]
    every_q = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * queries
    mask = layout.mask
    if mask is None:
        every_k = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * keys
        return Unpadded(Lengths(every_q, every_k, queries, keys), None, None)
    if mask.dtype is not torch.bool or mask.dim() != 4 or mask.shape[1:] != (1, 1, keys):
        raise UserError(
            f"{name}: got an attention_mask of shape {tuple(mask.shape)} and {dtype_name(mask.dtype)}, "
            f"expected (batch, length) of ones and zeros; use attn_implementation sdpa"
        )
    kept_k = mask[:, 0, 0].expand(batch, keys)
    k_indices, cu_k = kept_indices(kept_k)
    if not layout.causal:
        return Unpadded(Lengths(every_q, cu_k, queries, keys), None, k_indices)
    q_indices, cu_q = kept_indices(kept_k[:, keys - queries :])
    return Unpadded(Lengths(cu_q, cu_k, queries, keys), q_indices, k_indices)


def kept_indices(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Where `kept (B, S)` is true, as indices into the flat `(B * S)`, and where each row starts among them, `int32
    (B + 1)`.
    """
    ends = kept.sum(1).cumsum(0, dtype=torch.int32)
    return kept.flatten().nonzero().squeeze(1), F.pad(ends, (1, 0))


def varlen_back_end() -> Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, None]]:
    """The back end `varlen`: torch's own kernel. Raises UserError where torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise UserError(
            f"attn_implementation varlen needs torch 2.10 or newer, there is {torch.__version__}"
        ) from error
    # How to ask for a causal mask has changed from release to release; the first seven arguments have not.
    parameters = inspect.signature(varlen_attn).parameters
    causal_mask: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}

    def kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float, causal: bool, dropout: float) -> Tensor:
        options: dict[str, Any] = dict(causal_mask) if causal else {}
        if scale != q.shape[-1] ** -0.5:
            options["scale"] = scale
        out = varlen_attn(q, k, v, lengths.cu_q, lengths.cu_k, lengths.max_q, lengths.max_k, **options)
        assert isinstance(out, Tensor)  # the normalizers come only where they are asked for
        return out

    return back_end_of("varlen", kernel, dropouts=False)
