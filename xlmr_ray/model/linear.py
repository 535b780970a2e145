"""Linear layers for inference whose rows do not depend on how many there are: oneDNN's kernels on the CPU.

Torch gives float32 matmuls on the CPU to MKL. Where that finds Intel's AVX-512, it splits the sum over the input
features among threads when rows are few and these features many (768 x 3072: up to 384 rows with two threads; 1024 x
1024: up to 128), and so adds in another order: 1e-7, seen with torch 2.13. On other makers' CPUs it takes a slower
path. oneDNN's kernels add in the order of the input features whatever the number of rows, from 16 rows on: checked for
1 to 64 threads, float32 and bfloat16, on AVX2, AVX-512 and AVX-512 BF16. Prepacked, float32 is 2.3 to 2.6 times as fast
as MKL on an AMD CPU with AVX-512 (two threads, 256 to 4,096 rows), 1.2 times with AVX2 only, 1.0 to 1.3 times as
fast as MKL's AVX-512 kernels; bfloat16 is 1.1 to 1.3 times as fast as torch's own call of oneDNN.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OneDnnLinear(nn.Module):
    """A linear layer on the CPU, for inference: no gradients. The weight `(out, in)` is shared with the layer that it
    is made of, or, with `prepack`, copied into the layout that oneDNN's kernels read.
    """

    def __init__(self, layer: nn.Linear, *, prepack: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self.tile: int | None = None
        self.packed: Tensor | None = None
        if prepack:
            # No buffer: a tensor in this layout can be neither moved nor saved.
            self.packed = _prepacked(layer.weight.detach())
        else:
            self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, in)` to `(*tokens, out)`; with a `tile`, in calls of exactly so many rows."""
        weight = self.weight if self.packed is None else self.packed
        if self.tile is None:
            return _onednn(x, weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        padded = F.pad(rows, (0, 0, 0, -len(rows) % self.tile))
        out = torch.cat([_onednn(part, weight, self.bias) for part in torch.split(padded, self.tile)])
        return out[: len(rows)].view(*x.shape[:-1], self.out_features)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: the weight `(out, in)`, which is prepacked anew where it arrives."""
        return self.__dict__ | {"packed": None if self.packed is None else self.packed.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.packed is not None:
            self.packed = _prepacked(self.packed)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, prepacked={self.packed is not None}"


def use_onednn(module: nn.Module, *, prepack: bool) -> None:
    """Replaces every linear layer of a module on the CPU by an `OneDnnLinear`, where oneDNN computes in its dtype."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and supported(layer.weight.dtype):
            module.set_submodule(name, OneDnnLinear(layer, prepack=prepack))


def use_torch(module: nn.Module) -> None:
    """Undoes `use_onednn`, for what reads or changes weights: linear layers of torch with the same weights."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, OneDnnLinear):
            weight = layer.weight if layer.packed is None else layer.packed.to_dense()
            with torch.device("meta"):
                made = nn.Linear(layer.in_features, layer.out_features, bias=False)
            made.weight = nn.Parameter(weight, requires_grad=False)
            made.bias = layer.bias
            module.set_submodule(name, made)


class OneDnnProduct(torch.autograd.Function):
    """A linear layer and its gradients through oneDNN's kernels, in float32 on the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x (*tokens, in)`, `weight (out, in)`, `bias (out)` to `(*tokens, out)`."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            _onednn(grad, weight.t(), None) if wants_x else None,
            _onednn(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if wants_weight else None,
            rows.sum(0) if ctx.has_bias and wants_bias else None,
        )


class TrainedLinear(nn.Linear):
    """A linear layer on the CPU that is trained: of two threads on an AMD CPU with AVX-512, forward and backward took
    0.5 of the time of torch's own call; on one with AVX2 only, backward took 1.0 to 2.2 of it (one thread, 384 to 3,072
    wide).
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, in)` to `(*tokens, out)`."""
        if x.dtype is not torch.float32 or not x.numel() or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight, self.bias)
        out: Tensor = OneDnnProduct.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


def train_with_onednn(module: nn.Module) -> None:
    """Makes every linear layer of a module on the CPU a `TrainedLinear`, in place: parameters and names stay. Nothing
    on a CPU without AVX-512, where torch's own is as fast or faster.
    """
    if supported(torch.float32) and torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        for layer in module.modules():
            if type(layer) is nn.Linear and layer.weight.dtype is torch.float32:
                layer.__class__ = TrainedLinear


def use_tiles(module: nn.Module, tile: int | None) -> None:
    """Makes every `OneDnnLinear` compute so many rows a call (None: as many as there are): whatever a kernel chooses
    by the number of rows, it then chooses once. Slower: with 128 rows, e5 went at 0.82 (float32) and 0.86 (bfloat16) of
    the rate (AVX-512 BF16, two threads), which is why it is for CPUs that need it.
    """
    for layer in module.modules():
        if isinstance(layer, OneDnnLinear):
            layer.tile = tile


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of `x (*tokens, in)` and `weight (out, in)`; through oneDNN on the CPU, where no gradient is asked
    for.
    """
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if grad or x.device.type != "cpu" or not supported(x.dtype):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias)


@cache
def supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN has a linear layer of this dtype on this CPU (bfloat16 needs AVX-512, float16 AVX-512 FP16)."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        layer = nn.Linear(16, 16, dtype=dtype)
        OneDnnLinear(layer, prepack=True)(torch.zeros(16, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


def _prepacked(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
