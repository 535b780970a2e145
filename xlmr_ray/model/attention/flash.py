"""The flash-attention packages, versions 2 to 4: the only file that imports them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from xlmr_ray.errors import UserError
from xlmr_ray.model.attention.varlen import HALF, Lengths, back_end_of
from xlmr_ray.model.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Package:
    """One that has a `flash_attn_varlen_func`: where it is imported from, and what that can do."""

    module: str
    dtypes: tuple[torch.dtype, ...] = HALF
    dropouts: bool = False
    gradients: bool = True


# Versions 2 and 4 share the name flash_attn, so that only the function tells which is there. The wheel fa3-fwd is
# built without gradients and without float16, and has another name than what the sources of version 3 build.
PACKAGES: dict[str, tuple[Package, ...]] = {
    "flash_attention_2": (Package(module="flash_attn", dropouts=True),),
    "flash_attention_3": (
        Package(module="flash_attn_interface"),
        Package(module="fa3_fwd_interface", dtypes=(torch.bfloat16,), gradients=False),
    ),
    "flash_attention_4": (Package(module="flash_attn.cute"),),
}
INSTALL = {
    "flash_attention_2": "flash-attn: pip install 'xlmr-ray[flash]'",
    "flash_attention_3": "fa3-fwd: pip install fa3-fwd (bfloat16 and inference only; the rest: from source)",
    "flash_attention_4": "flash-attn-4: pip install --pre flash-attn-4",
}


def flash_back_end(name: str) -> Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, None]]:
    """The back end of that name out of its package. Raises UserError where that cannot be imported."""
    failures = []
    for package in PACKAGES[name]:
        try:
            function: Callable[..., Any] = import_module(package.module).flash_attn_varlen_func
        except (ImportError, AttributeError, OSError) as error:  # OSError: a library that the package links to
            failures.append(str(error))
            continue
        return backend_over(name, package, function)
    raise UserError(f"attn_implementation {name} needs the package {INSTALL[name]} ({'; '.join(failures)})")


def backend_over(
    name: str, package: Package, function: Callable[..., Any]
) -> Callable[[Tensor, Tensor, Tensor, Layout, float], tuple[Tensor, None]]:
    """The back end over a package's `flash_attn_varlen_func`."""

    def kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float, causal: bool, dropout: float) -> Tensor:
        # By keyword: the versions do not agree on the order.
        out = function(
            q,
            k,
            v,
            cu_seqlens_q=lengths.cu_q,
            cu_seqlens_k=lengths.cu_k,
            max_seqlen_q=lengths.max_q,
            max_seqlen_k=lengths.max_k,
            softmax_scale=scale,
            causal=causal,
            **({"dropout_p": dropout} if package.dropouts else {}),
        )
        first: Tensor = out[0] if isinstance(out, tuple) else out  # version 4 returns the normalizers, too
        return first

    return back_end_of(name, kernel, dtypes=package.dtypes, dropouts=package.dropouts, gradients=package.gradients)
