"""Attention masks as users give them, to masks as attention takes them."""

import torch
from torch import Tensor

from xlmr_ray.errors import UserError
from xlmr_ray.model.argument_checks import values_unknown


def visible(name: str, mask: Tensor | None, keys: int, x: Tensor, heads: int) -> Tensor | None:
    """A mask as `Padded` holds it, where `x` is and in its type; None where nothing is hidden.

    `mask` is `(B, keys)` of ones and zeros, or `(B, 1 or heads, queries, keys)`: boolean, True where attention may
    look, or floats to add to the scores. `x: (B, queries, hidden)`. `name` is for messages.
    """
    if mask is None:
        return None
    batch, queries = x.shape[:2]
    full = (batch, heads, queries, keys)
    sizes = tuple(mask.shape)
    fits = sizes == (batch, keys) or (
        len(sizes) == 4 and sizes[3] == keys and all(size in (1, most) for size, most in zip(sizes, full, strict=True))
    )
    if not fits:
        raise UserError(f"{name}: got shape {sizes}, expected {(batch, keys)} or {full} (batch or heads may be 1)")
    if mask.dim() == 2 or mask.dtype is torch.bool:
        seen = mask.bool()
        if not values_unknown() and bool(seen.all()):
            return None
        return (seen[:, None, None, :] if mask.dim() == 2 else seen).to(x.device)
    if not mask.is_floating_point():
        raise UserError(
            f"{name}: got {mask.dtype}; with four dimensions, expected booleans, or floats that are added to the scores"
        )
    # The smallest number of the scores' own type: -inf in all of a row would make it NaN.
    return mask.clamp(min=torch.finfo(x.dtype).min).to(x.device, x.dtype)
