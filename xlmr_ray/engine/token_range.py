"""Sequences with a token that the model has no embedding for: a GPU would only say so by failing for good."""

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.engine.error_codes import TOKEN_OUT_OF_RANGE


def out_of_range(ids: NDArray[np.int32], row_splits: NDArray[np.int64], vocab_size: int) -> dict[int, tuple[str, str]]:
    """The code and message of each sequence of ragged ids (sequence i is `ids[row_splits[i]:row_splits[i + 1]]`) that
    holds such a token. Its tokenizer is another model's, or tokens were added to it.
    """
    if not len(ids) or (ids.min() >= 0 and ids.max() < vocab_size):
        return {}
    where = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    owners, first = np.unique(np.searchsorted(row_splits, where, side="right") - 1, return_index=True)
    return {
        owner: (TOKEN_OUT_OF_RANGE, f"token id {token} is none of the model's, which are 0 to {vocab_size - 1}")
        for owner, token in zip(owners.tolist(), ids[where[first]].tolist(), strict=True)
    }
