"""Linear layers over token states as tasks run them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.checkpoint.token_heads import TokenHead


def token_layer(layer: TokenHead) -> nn.Module:
    """The layer with its weights, fp32."""
    width, hidden = layer.weight.shape
    linear = nn.Linear(hidden, width, bias=layer.bias is not None)
    linear.weight = nn.Parameter(layer.weight, requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias, requires_grad=False)
    return linear


def lexical_weights(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Hidden states `(T, hidden)` to weights `(T, 1)`, 0 or more, in fp32.

    A matmul with one column is a matrix-vector product, whose rows depend on their number; sums of each row do not.
    """
    assert isinstance(layer, nn.Linear)
    total = (hidden.float() * layer.weight).sum(-1, keepdim=True)
    return torch.relu(total if layer.bias is None else total + layer.bias)


def token_vectors(layer: nn.Module, hidden: Tensor, *, normalize: bool) -> Tensor:
    """Hidden states `(T, hidden)` to vectors `(T, width)` in fp32, of length 1 if `normalize`."""
    vectors: Tensor = layer(hidden.float())
    return F.normalize(vectors, dim=-1) if normalize else vectors
