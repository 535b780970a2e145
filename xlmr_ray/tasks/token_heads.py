"""Linear layers over token states as tasks run them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.checkpoint.token_heads import TokenHead


def token_layer(layer: TokenHead) -> nn.Linear:
    """The layer with its weights, fp32."""
    width, hidden = layer.weight.shape
    linear = nn.Linear(hidden, width, bias=layer.bias is not None)
    linear.weight = nn.Parameter(layer.weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias, requires_grad=False)
    return linear


class LexicalLayer(nn.Module):
    """A linear layer with one output, and ReLU: hidden states `(T, hidden)` to weights `(T, 1)`, 0 or more, in fp32.

    A matmul with one column is a matrix-vector product, whose rows depend on their number; sums of each row do not.
    """

    def __init__(self, layer: TokenHead) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Weights `(T, 1)`."""
        total = (hidden.float() * self.weight).sum(-1, keepdim=True)
        return torch.relu(total if self.bias is None else total + self.bias)


def token_vectors(layer: nn.Module, hidden: Tensor, width: int | None = None, *, normalize: bool) -> Tensor:
    """Hidden states `(T, hidden)` to vectors `(T, width)` in fp32, their first numbers, of length 1 if `normalize`."""
    vectors: Tensor = layer(hidden.float())[:, :width]
    return F.normalize(vectors, dim=-1) if normalize else vectors
