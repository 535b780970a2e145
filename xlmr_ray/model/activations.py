"""Activation functions by the names that `hidden_act` uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Their names in torch.nn.functional, but for two.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
    "leaky_relu": "leaky_relu",
    "mish": "mish",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}


def check_activation(name: str) -> None:
    """Raises UserError for a name that there is not. Does without torch."""
    if name not in ACTIVATIONS:
        raise UserError(f"hidden_act {name!r} is not known; there are: {', '.join(ACTIVATIONS)}")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name. Raises UserError for a name that there is not."""
    from torch.nn import functional as F

    check_activation(name)
    if ACTIVATIONS[name] == "quick_gelu":
        return quick_gelu
    if ACTIVATIONS[name] == "gelu_tanh":
        return partial(F.gelu, approximate="tanh")
    found: Callable[[Tensor], Tensor] = getattr(F, ACTIVATIONS[name])
    return found


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 x)`: the sigmoid approximation of Hendrycks and Gimpel (2016), section 2."""
    return x * (1.702 * x).sigmoid()
