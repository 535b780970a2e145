"""Where a task's results lie: a row a sequence, a token, or a token with a target."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.model.ignored import IGNORED


@dataclass(frozen=True)
class ResultRows:
    """Sequence i's results are the rows `splits[i]` to `splits[i + 1]`; `splits` is `(N + 1)`."""

    splits: NDArray[np.int64]

    @classmethod
    def of(cls, unit: str, row_splits: NDArray[np.int64], targets: NDArray[np.int32] | None) -> "ResultRows":
        """Of N sequences with these row splits `(N + 1)` of their tokens, and the tokens' targets `(T)`."""
        if unit == "sequence":
            return cls(np.arange(len(row_splits)))
        if unit == "token":
            return cls(row_splits)
        if unit != "target":
            raise ValueError(f"a task's unit is sequence, token or target, got {unit!r}")
        if targets is None:
            raise ValueError("a task of targets, and no targets")
        ends = np.concatenate([[0], np.cumsum(targets != IGNORED)])
        return cls(ends[row_splits])

    @property
    def total(self) -> int:
        """Rows of all sequences."""
        return int(self.splits[-1])

    def rows(self, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of the chosen sequences, one sequence after another, and the sequence that each is of."""
        counts = self.splits[chosen + 1] - self.splits[chosen]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self.splits[chosen], counts) + within, np.repeat(chosen, counts)

    def keep(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows are of the sequences that are kept `(N)`."""
        return np.repeat(kept, np.diff(self.splits))
