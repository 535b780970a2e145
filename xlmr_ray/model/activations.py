"""Activation functions by the names that `hidden_act` uses."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.errors import UserError


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`: the sigmoid approximation of Hendrycks and Gimpel (2016), section 2."""
    return x * torch.sigmoid(1.702 * x)


gelu_tanh = partial(F.gelu, approximate="tanh")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises UserError for a name that there is not."""
    if name not in ACTIVATIONS:
        raise UserError(f"hidden_act {name!r} is not known; there are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
