"""Attention back ends: one function each, chosen by name from one table.

All take `q`, `k`, `v` of shape `(*tokens, heads, head_dim)` and a layout, and return the mixed values in the shape of
`q`, with the probabilities `(B, heads, queries, keys)` where the back end has them (eager on the padded layout) and
None elsewhere. On the padded layout keys and values may be more than the queries, or others (cross-attention).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.errors import UserError
from xlmr_ray.model.attention.avx512 import attend_packed, can_attend
from xlmr_ray.model.attention.flash import PACKAGES, flash_back_end
from xlmr_ray.model.attention.varlen import HALF, check_tensors, varlen_back_end
from xlmr_ray.model.dropout import dropout as cheap_dropout
from xlmr_ray.model.layout import Layout, Packed

Attention = Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, Tensor | None]]
Dense = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], tuple[Tensor, Tensor | None]]


def past_and_self(queries: int, keys: int, device: torch.device) -> Tensor:
    """The causal mask `(queries, keys)`, True where a query may look; the queries are the last of the keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def with_causality(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """A mask (see `Padded`) that hides what comes after a query, too."""
    causal = past_and_self(q.shape[-2], k.shape[-2], q.device)
    if mask is None:
        return causal
    if mask.dtype is torch.bool:
        return mask & causal
    return mask.masked_fill(~causal, torch.finfo(mask.dtype).min)


def dense_eager(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Softmax of scaled dot products, written out. `q: (B, heads, queries, head_dim)`, `k, v: (B, heads, keys,
    head_dim)`; `mask` and `causal` as in `Padded`.
    """
    probs = attention_probabilities(q, k, mask, causal)
    probs = F.dropout(probs, dropout)
    return probs @ v, probs


def dense_trained(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """As `dense_eager`, with a dropout that is cheap on the CPU; torch's fused attention has none there, and computes
    the same in more passes.
    """
    return cheap_dropout(attention_probabilities(q, k, mask, causal), dropout) @ v, None


def attention_probabilities(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """How much each query takes of each key, `(B, heads, queries, keys)`; arguments as in `dense_eager`."""
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if causal and q.shape[-2] > 1:
        mask = with_causality(mask, q, k)
    if mask is not None and mask.dtype is torch.bool:
        # Added in fp32, and the smallest number rather than -inf: a row with nothing to look at is the mean of all
        # and has transformers' gradients, too.
        mask = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(
            ~mask, torch.finfo(torch.float32).min
        )
    if mask is not None:
        scores = scores.float() + mask
    return F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)


def dense_sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Torch's fused attention; arguments as in `dense_eager`."""
    if causal and q.shape[-2] == 1:
        causal = False  # the last token sees all the others
    elif causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        # The kernel takes no mask beside its own causal one, which counts from the first key, not the last.
        mask, causal = with_causality(mask, q, k), False
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal), None


def over_layouts(dense: Dense) -> Attention:
    """Lifts a dense `(B, heads, S, head_dim)` kernel to both layouts.

    Packed tokens go through in runs of equal length, so that a sequence's answer depends on no other.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float) -> tuple[Tensor, Tensor | None]:
        if not isinstance(layout, Packed):
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            out, probs = dense(q, k, v, layout.mask, layout.causal, dropout)
            return out.transpose(1, 2), probs
        packed = dense_trained if dropout and q.device.type == "cpu" else dense
        runs = list(layout.runs())
        sizes = [count * length for _, count, length in runs]
        parts = []
        # Split, not sliced: each slice's gradient would be a tensor as long as all.
        for (_, count, length), *window in zip(runs, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
            q1, k1, v1 = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in window)
            parts.append(packed(q1, k1, v1, None, layout.causal, dropout)[0].transpose(1, 2).flatten(0, 1))
        return torch.cat(parts), None

    return attend


def on_hopper(device: torch.device) -> bool:
    """Whether the device is a GPU of compute capability 9, which FlashAttention 3 is written for."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@cache
def best_packed(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, Attention]:
    """The fastest back end that is there for packed sequences on that device, with its name."""
    for name in ("flash_attention_3", "flash_attention_2", "varlen"):
        if name == "flash_attention_3" and not (on_hopper(device) and dtype is torch.bfloat16):
            continue  # its wheel has no other dtype
        try:
            check_tensors(name, device, dtype, head_dim, HALF)
            return name, OPTIONAL[name]()
        except UserError:
            continue
    return "sdpa", ATTENTION["sdpa"]


def attend_best(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Over packed sequences flash attention where there is one, and our own kernel on a CPU that it serves; `sdpa` for
    all else.

    On the padded layout `sdpa` is a flash kernel itself where nothing is padded, and takes every mask. Not all flash
    kernels have a dropout.
    """
    if isinstance(layout, Packed) and not dropout:
        inference = not (torch.is_grad_enabled() and q.requires_grad)
        if q.device.type == "cpu" and inference and not layout.causal and can_attend(q.dtype, q.shape[-1]):
            return attend_packed(q, k, v, layout), None
        return best_packed(q.device, q.dtype, q.shape[-1])[1](q, k, v, layout, dropout)
    return ATTENTION["sdpa"](q, k, v, layout, dropout)


ATTENTION: dict[str, Attention] = {
    "eager": over_layouts(dense_eager),
    "sdpa": over_layouts(dense_sdpa),
    "auto": attend_best,
}
# These come with a package, or a release of torch, that may not be there: made when they are asked for.
OPTIONAL: dict[str, Callable[[], Attention]] = {
    "varlen": varlen_back_end,
    **{name: partial(flash_back_end, name) for name in PACKAGES},
}


@dataclass(frozen=True)
class BackEnd:
    """A back end that copies and pickles as its name: where it is read back, the name must be known, too."""

    name: str
    attend: Attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float) -> tuple[Tensor, Tensor | None]:
        return self.attend(q, k, v, layout, dropout)

    def __reduce__(self) -> tuple[Callable[[str], Attention], tuple[str]]:
        return attention, (self.name,)


def attention(name: str) -> Attention:
    """The back end of that name; `auto` chooses for the tensors of each call. Raises UserError for a name that does
    not exist, or whose package is not installed.
    """
    if name in OPTIONAL:
        return BackEnd(name, OPTIONAL[name]())
    if name not in ATTENTION:
        raise UserError(f"attn_implementation {name!r} is not known; there are: {', '.join([*ATTENTION, *OPTIONAL])}")
    return BackEnd(name, ATTENTION[name])
