"""Checks of tensors that users give: one line with got and expected."""

import torch
from torch import Tensor

from xlmr_ray.errors import UserError


def check_shape(name: str, x: Tensor, *expected: int | str) -> None:
    """Raises UserError where a tensor has another shape; a word stands for any size."""
    fits = x.dim() == len(expected) and all(
        isinstance(e, str) or e == size for e, size in zip(expected, x.shape, strict=True)
    )
    if not fits:
        words = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
        raise UserError(f"{name}: got shape {tuple(x.shape)}, expected ({words})")


def values_unknown() -> bool:
    """Whether this call is compiled, exported or traced: what a tensor holds now says nothing of later calls."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]


def check_range(name: str, ids: Tensor, size: int) -> None:
    """Raises UserError where an id has no row in a table of that size: a GPU would only say so by failing for good."""
    if values_unknown() or not ids.numel():
        return
    lowest, highest = (int(x) for x in ids.aminmax())
    if lowest < 0 or highest >= size:
        raise UserError(f"{name}: got {lowest} to {highest}, expected 0 to {size - 1}")
