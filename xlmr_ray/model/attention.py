"""Attention back ends: one function each, chosen by name from one table.

All take `q`, `k`, `v` of shape `(*tokens, heads, head_dim)` and a layout, and return the mixed values in that same
shape, with the probabilities `(B, heads, S, S)` where the back end has them (eager on the padded layout) and None
elsewhere.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.errors import UserError
from xlmr_ray.model.layout import Layout, Packed

Attention = Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, Tensor | None]]
Dense = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor | None]]


def dense_eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Softmax of scaled products, written out. `q, k, v: (B, heads, S, head_dim)`; `mask` True where attention may
    look.
    """
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if mask is not None:
        # The smallest number rather than -inf: a row with nothing to look at stays finite, as in the reference.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(probs, dropout) @ v, probs


def dense_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Torch's fused product. `q, k, v: (B, heads, S, head_dim)`; `mask` True where attention may look."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), None


def over_layouts(dense: Dense) -> Attention:
    """Lifts a dense `(B, heads, S, head_dim)` kernel to both layouts.

    Packed tokens go through in runs of equal length, so that a sequence's answer depends on itself alone.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, dropout: float) -> tuple[Tensor, Tensor | None]:
        if not isinstance(layout, Packed):
            out, probs = dense(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout.mask, dropout)
            return out.transpose(1, 2), probs
        parts = []
        for start, count, length in layout.runs():
            window = slice(start, start + count * length)
            q1, k1, v1 = (x[window].view(count, length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            parts.append(dense(q1, k1, v1, None, dropout)[0].transpose(1, 2).flatten(0, 1))
        return torch.cat(parts), None

    return attend


ATTENTION: dict[str, Attention] = {
    "eager": over_layouts(dense_eager),
    "sdpa": over_layouts(dense_sdpa),
}


def attention(name: str) -> Attention:
    """The back end of that name. Raises UserError for a name that there is not."""
    if name not in ATTENTION:
        raise UserError(f"attn_implementation {name!r} is not known; there are: {', '.join(ATTENTION)}")
    return ATTENTION[name]
