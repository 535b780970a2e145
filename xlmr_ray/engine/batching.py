"""Which sequences go into a batch together: sorted by length, cut to a token budget."""

import numpy as np
from numpy.typing import NDArray


def longest_first(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sequence numbers from the longest to the shortest, equals in their order.

    Descending, so that the largest batch comes first and a lack of memory shows at once.
    """
    return np.argsort(-lengths, kind="stable")


def next_batch(lengths: NDArray[np.int64], order: NDArray[np.int64], max_tokens: int) -> NDArray[np.int64]:
    """The head of `order` that fits in `max_tokens`; one sequence at least."""
    # No sequence is shorter than one token, so no more than max_tokens of them fit.
    ends = np.cumsum(lengths[order[: max(max_tokens, 1)]])
    return order[: max(1, int(np.searchsorted(ends, max_tokens, side="right")))]
