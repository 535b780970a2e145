"""Scores that add up to 1."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", np.float32, np.float64)


def softmax(logits: NDArray[Real]) -> NDArray[Real]:
    """Over the last axis, `(..., labels)`, in the precision of the logits."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    result: NDArray[Real] = exponents / exponents.sum(axis=-1, keepdims=True)
    return result
