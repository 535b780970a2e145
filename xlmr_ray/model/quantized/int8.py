"""Matmuls in eight bits on the CPU: a scale for each token's activations, found as they come, and one for each output
of the weights. A token's result depends on no other token.

Integer sums are exact in whatever order, so that this holds to the last bit. A token's codes span its own smallest and
largest value (affine, after Jacob et al., arXiv:1712.05877):

    x = low + scale * code,   sum_k w_k x_k + b = scale * sum_k w_k code_k + low * sum_k w_k + b

In float32 activations take the codes 0 to 127, not 255: where a CPU has no dot product of bytes (AVX2) two products of
255 * 127 overflow the 16 bits that they are added in. In bfloat16, which is for CPUs that have one (AVX-512 BF16 comes
with it), they take the codes 0 to 255.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.errors import UserError
from xlmr_ray.model.kernels.library import available, run
from xlmr_ray.text.first_line import first_line

# The largest code of a weight, and of an activation by its dtype.
LARGEST = 127
LARGEST_CODES = {torch.float32: 127, torch.bfloat16: 255}


class Int8Linear(nn.Module):
    """A linear layer in eight bits, for inference. Input and output have its dtype, float32 or bfloat16, as has all
    that lies between two.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        check_exact(LARGEST_CODES[layer.weight.dtype])
        weight = layer.weight.detach().float()
        scales = (weight.abs().amax(1) / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (weight / scales[:, None]).round().to(torch.int8).contiguous()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.long))
        self.register_buffer("sums", codes.long().sum(1).float() * scales)
        self.register_buffer("bias", torch.zeros(len(scales)) if layer.bias is None else layer.bias.detach().float())
        self.packed = _prepacked_codes(codes)  # no buffer: a tensor in this layout can be neither moved nor saved

    def forward(self, x: Tensor) -> Tensor:
        """`(T, in)` to `(T, out)`."""
        codes, scale, low = quantize_rows(x) if x.dtype is torch.float32 else quantize_half_rows(x)
        products = int8_matmul(codes, self.packed, self.get_buffer("scales"), self.get_buffer("zeros"))
        bias, sums = self.get_buffer("bias"), self.get_buffer("sums")
        if x.dtype is torch.float32:
            torch.addcmul(bias, products, scale, out=products)
            return products.addr_(low[:, 0], sums)
        return half_rows(products, scale, low, bias, sums)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: the codes `int8 (out, in)`, which are prepacked anew where they arrive."""
        return self.__dict__ | {"packed": self.packed.to_dense().t()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.packed = _prepacked_codes(self.packed.contiguous())

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows `(T, n)` as codes `uint8 (T, n)` from 0 to 127, with each row's `scale` and `low`, `(T, 1)`: the row is
    about `low + scale * code`.
    """
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = ((high - low) / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    # Half a step more, since the conversion cuts off; to int8, since that to uint8 takes four times as long.
    return (x - (low - scale / 2)).mul_(scale.reciprocal()).to(torch.int8).view(torch.uint8), scale, low


def quantize_half_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `quantize_rows`, of `bfloat16 (T, n)`, with codes from 0 to 255."""
    if not available("quantize_bfloat16"):
        numbers = x.float()
        low, high = numbers.amin(1, keepdim=True), numbers.amax(1, keepdim=True)
        scale = ((high - low) / LARGEST_CODES[x.dtype]).clamp_min_(torch.finfo(torch.float32).tiny)
        return (numbers - low).mul_(scale.reciprocal()).round_().to(torch.uint8), scale, low
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.uint8)
    scale, low = torch.empty(2, len(x), 1).unbind(0)
    run("quantize_bfloat16", *(t.data_ptr() for t in (x, codes, scale, low)), *x.shape)
    return codes, scale, low


def half_rows(products: Tensor, scale: Tensor, low: Tensor, bias: Tensor, sums: Tensor) -> Tensor:
    """`products * scale + bias + low * sums` in `bfloat16 (T, out)`, computed in float32: `products (T, out)`, `scale,
    low (T, 1)`, `bias, sums (out)`.
    """
    if not available("dequantize_bfloat16"):
        return torch.addcmul(bias, products, scale).addr_(low[:, 0], sums).bfloat16()
    out = torch.empty(products.shape, dtype=torch.bfloat16)
    given = (products, scale, low, bias, sums, out)
    run("dequantize_bfloat16", *(t.data_ptr() for t in given), *products.shape)
    return out


def int8_matmul(codes: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """`codes (T, in)` by packed codes of weights, times the `scales (out)` of these: `float32 (T, out)`."""
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


def _prepacked_codes(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def eight_bits(module: nn.Module) -> None:
    """Puts a layer in eight bits instead of every linear one."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear:
            module.set_submodule(name, Int8Linear(layer))


@cache
def check_exact(largest: int = LARGEST) -> None:
    """Raises UserError where torch has no such matmul, or its sums overflow on this CPU with codes up to `largest`."""
    rows = 16
    codes = torch.full((rows, 64), largest, dtype=torch.uint8)
    weights = torch.full((rows, 64), LARGEST, dtype=torch.int8)
    try:
        packed = _prepacked_codes(weights)
        got = int8_matmul(codes, packed, torch.ones(rows), torch.zeros(rows, dtype=torch.long))
    except (AttributeError, RuntimeError) as error:
        raise UserError(
            f"quantization int8: torch {torch.__version__} has no such matmul here: {first_line(error)}"
        ) from None
    if not torch.equal(got, torch.full_like(got, 64 * LARGEST * largest)):
        instead = "leave it out" if largest == LARGEST else "take dtype: float32, whose codes are fewer"
        raise UserError(f"quantization int8: this CPU's sums of 8-bit products overflow; {instead}")
