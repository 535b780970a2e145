"""How far confidence and accuracy are apart."""

import numpy as np
from numpy.typing import NDArray

BINS = 15


def calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int = BINS) -> float:
    """The expected calibration error of predictions `(N)`: the mean, over bins of equal width weighted by what is in
    them, of the distance between mean confidence and share right (Guo et al., 2017, https://arxiv.org/abs/1706.04599).
    """
    place = bin_of(confidence, bins)
    gap = np.bincount(place, confidence, bins) - np.bincount(place, right, bins)
    return float(np.abs(gap).sum() / len(confidence))


def bin_of(confidence: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """The bin `(N)` of each confidence, from 0."""
    found: NDArray[np.int64] = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    return found
