"""Checks of tensors that users give: one line that says what is wanted and what came."""

import torch
from torch import Tensor

from xlmr_ray.errors import UserError


def check_shape(name: str, x: Tensor, *wanted: int | str) -> None:
    """Raises UserError where a tensor has another shape; a word stands for any size."""
    fits = x.dim() == len(wanted) and all(
        isinstance(w, str) or w == size for w, size in zip(wanted, x.shape, strict=True)
    )
    if not fits:
        words = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
        raise UserError(f"{name}: ({words}) is wanted, got {tuple(x.shape)}")


def check_range(name: str, ids: Tensor, size: int) -> None:
    """Raises UserError where an id has no row in a table of that size: a GPU would only say so by failing for good."""
    if torch.compiler.is_compiling() or not ids.numel():
        return  # what depends on values cannot be compiled
    lowest, highest = (int(x) for x in ids.aminmax())
    if lowest < 0 or highest >= size:
        raise UserError(f"{name}: the model has 0 to {size - 1}, got {lowest} to {highest}")
