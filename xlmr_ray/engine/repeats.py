"""Which sequences are equal to one before them: all that a task's forward reads of them is, so their results are those
of the first, which only is computed.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.engine.result_rows import ResultRows

AT_ONCE = 1024  # sequences whose results are copied together: with a vector a token a shard's are gigabytes


@dataclass(frozen=True)
class Repeats:
    """Of N sequences: `first (N)`, the number of the first one that is equal, its own where there is none before."""

    first: NDArray[np.int64]

    @classmethod
    def of(
        cls, ids: NDArray[np.int32], splits: NDArray[np.int64], targets: NDArray[np.int32] | None = None
    ) -> "Repeats":
        """Of flat ids `(T)` and their targets `(T)`, the sequences at `splits (N + 1)`. They are compared, not hashed
        only.
        """
        read = ids if targets is None else np.stack([ids, targets], axis=1)
        size = ids.itemsize * (1 if targets is None else 2)
        data, number = read.tobytes(), dict[bytes, int]()
        ends = pairwise((splits * size).tolist())
        first = [number.setdefault(data[start:end], i) for i, (start, end) in enumerate(ends)]
        return cls(np.array(first, np.int64))

    @property
    def again(self) -> NDArray[np.int64]:
        """The numbers of the sequences that have an equal one before them."""
        return np.flatnonzero(self.first != np.arange(len(self.first)))

    @property
    def firsts(self) -> NDArray[np.int64]:
        """The numbers of the others, of which no two are equal."""
        return np.flatnonzero(self.first == np.arange(len(self.first)))

    def distinct(
        self, ids: NDArray[np.int32], splits: NDArray[np.int64], targets: NDArray[np.int32] | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32] | None]:
        """Of the sequences' ids, splits and targets, those of the `firsts`."""
        if not len(self.again):
            return ids, splits, targets
        tokens, _ = ResultRows(splits).rows(self.firsts)
        ends = np.cumsum([0, *np.diff(splits)[self.firsts]])
        return ids[tokens], ends, None if targets is None else targets[tokens]

    def spread(self, results: NDArray[Any], rows: ResultRows) -> NDArray[Any]:
        """The results of all sequences, from those of the `firsts` `(R, ...)`."""
        if not len(self.again):
            return results
        return results[rows.rows(np.searchsorted(self.firsts, self.first))[0]]

    def fill(self, results: NDArray[Any], rows: ResultRows) -> None:
        """Gives the sequences that have an equal one before them its results `(R, ...)`."""
        again = self.again
        for start in range(0, len(again), AT_ONCE):
            some = again[start : start + AT_ONCE]
            results[rows.rows(some)[0]] = results[rows.rows(self.first[some])[0]]

    def failed(self, failed: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
        """What has failed, and what is equal to it."""
        if not failed:
            return failed
        again = self.again
        equal = zip(again.tolist(), self.first[again].tolist(), strict=True)
        return failed | {i: failed[first] for i, first in equal if first in failed}
