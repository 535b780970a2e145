"""bitsandbytes' layers, which a forward pass leaves as they were; the only file that imports bitsandbytes.

Two things that the library (0.50) does at a forward change what is saved afterwards, and are not done here:

- Where a CPU has AVX-512 BF16, it repacks 4-bit weights in place, with their scales in bfloat16, and computes in
  bfloat16 whatever dtype was asked for. Weights whose shape the packing does not take (output features that 32 does
  not divide, blocks that cross rows) end in an assertion. Here every CPU takes the same path: dequantize, then a
  linear layer in `compute_dtype`. Measured on such a CPU, that is 0.8 to 1.2 times as fast in bfloat16 from 128 rows
  on (2.5 times slower in float32, as is every linear layer there).
- It converts a bias in place to the dtype of the activations.
"""

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from xlmr_ray.model.linear import linear

# Said at the import where the CPU has AVX-512 BF16: a kernel for the packed weights, which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
import bitsandbytes as bnb  # noqa: E402 (after the line above)

# In eight bits it warns in every forward of every layer that the inputs are not float16.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


class Linear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]
    """A linear layer of 4-bit weights, computed in `compute_dtype` on every device."""

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, in)` to `(*tokens, out)`, in the dtype of `x`."""
        dtype = self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        if x.device.type == "cpu" and not (torch.is_grad_enabled() and x.requires_grad):
            state = copy.copy(self.weight.quant_state)
            state.dtype = dtype
            return linear(x.to(dtype), bnb.functional.dequantize_4bit(self.weight.data, state), bias).to(x.dtype)
        out: Tensor = bnb.matmul_4bit(x.to(dtype), self.weight, bias=bias, quant_state=self.weight.quant_state)
        return out.to(x.dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy: torch unpickles parameters of a subclass as plain ones, and a deep copy's refer to the old layer."""
        super().__setstate__(state)
        weight: Any = self._parameters["weight"]
        if not isinstance(weight, bnb.nn.Params4bit):
            self.weight = bnb.nn.Params4bit(weight.data, requires_grad=False, **vars(weight))
        self.weight.module = self
        self.quant_state = self.weight.quant_state


class Linear8bitLt(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """A linear layer of 8-bit weights (LLM.int8)."""

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, in)` to `(*tokens, out)`, in the dtype of `x`."""
        dtype = x.dtype if self.bias is None else self.bias.dtype
        out: Tensor = super().forward(x.to(dtype))
        return out.to(x.dtype)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in `Linear4bit`."""
        super().__setstate__(state)
        weight: Any = self._parameters["weight"]
        if not isinstance(weight, bnb.nn.Int8Params):
            self.weight = bnb.nn.Int8Params(weight.data, requires_grad=weight.requires_grad, **vars(weight))
