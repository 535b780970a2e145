"""Matmuls in eight-bit floating point (E4M3: three bits of mantissa, at most 448; Micikevicius et al.,
arXiv:2209.05433), for GPUs that have them: a scale for each token's activations, found as they come, and one for each
output of the weights. A token's operands do not depend on what it is computed with.
"""

import torch
from torch import Tensor, nn

from xlmr_ray.errors import UserError

CODES = torch.float8_e4m3fn
LARGEST = torch.finfo(CODES).max
# Torch's kernels need multiples of this for input and output features.
STEP = 16
# The first GPUs with such matmuls.
CAPABILITY = (8, 9)


class Fp8Linear(nn.Module):
    """A linear layer in eight bits, for inference. Input and output are in the layer's own dtype, which for the GPU's
    kernels is bfloat16.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        if self.in_features % STEP or self.out_features % STEP:
            raise UserError(
                f"quantization fp8: got a layer of {self.in_features} x {self.out_features}, "
                f"expected multiples of {STEP}"
            )
        codes, scales = scaled(layer.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales.t())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """`(T, in)` to `(T, out)`."""
        codes, scales = scaled(x)
        weights = self.get_buffer("codes").t()
        out: Tensor = torch._scaled_mm(
            codes, weights, scale_a=scales, scale_b=self.get_buffer("scales"), out_dtype=x.dtype
        )
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `(N, n)` as codes `float8_e4m3fn (N, n)` and each row's scale `float32 (N, 1)`: a row is about `scale *
    codes`.
    """
    scales = (x.abs().amax(1, keepdim=True).float() / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    return (x.float() / scales).to(CODES).contiguous(), scales


def eight_bit_floats(module: nn.Module) -> None:
    """Puts a layer in eight bits instead of every linear one."""
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear:
            module.set_submodule(name, Fp8Linear(layer))
