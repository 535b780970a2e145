"""A call's sequences, of which some were computed in a call before: their results are taken, those of others left."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.engine.result_cache import KnownResults, keys_of
from xlmr_ray.engine.result_rows import ResultRows


@dataclass
class KnownSequences:
    """Of N sequences `chosen` ones, for several heads: `raw` are each head's results `(R, ...)` of all N, in `rows`.
    `names` stand for the heads, with all that decides what they give.
    """

    store: KnownResults
    chosen: NDArray[np.int64]
    raw: Sequence[NDArray[np.float32]]
    rows: Sequence[ResultRows]
    keys: list[list[bytes]]  # a list a head
    left: NDArray[np.int64] = field(init=False)

    @classmethod
    def of(
        cls,
        store: KnownResults,
        names: Sequence[bytes],
        ids: NDArray[np.int32],
        splits: NDArray[np.int64],
        targets: NDArray[np.int32] | None,
        chosen: NDArray[np.int64],
        raw: Sequence[NDArray[np.float32]],
        rows: Sequence[ResultRows],
    ) -> "KnownSequences":
        keys = [keys_of(name, ids, splits, targets, chosen) for name in names]
        return cls(store, chosen, raw, rows, keys)

    def __post_init__(self) -> None:
        """Fills in what is there for all heads; `left` are the sequences of the others, in their order."""
        count = len(self.chosen)
        found = self.store.find([key for keys in self.keys for key in keys]) if count else []
        of_heads = [found[start : start + count] for start in range(0, len(found), count)] if count else []
        here = [all(values[at] is not None for values in of_heads) for at in range(count)]
        for raw, rows, values in zip(self.raw, self.rows, of_heads, strict=False):
            shape = raw.shape[1:]
            for at in np.flatnonzero(here).tolist():
                value, one = values[at], int(self.chosen[at])
                assert value is not None
                raw[rows.splits[one] : rows.splits[one + 1]] = np.frombuffer(value, np.float32).reshape(-1, *shape)
        self.left = self.chosen[~np.array(here, np.bool_)] if count else self.chosen

    @property
    def taken(self) -> NDArray[np.int64]:
        """The sequences whose results were there."""
        return self.chosen[~np.isin(self.chosen, self.left)]

    def leave(self, failed: Sequence[int]) -> None:
        """Leaves the results of what was computed and has not failed."""
        new = np.isin(self.chosen, self.left) & ~np.isin(self.chosen, list(failed))
        out = {}
        for raw, rows, keys in zip(self.raw, self.rows, self.keys, strict=True):
            for at in np.flatnonzero(new).tolist():
                one = int(self.chosen[at])
                out[keys[at]] = raw[rows.splits[one] : rows.splits[one + 1]].tobytes()
        if out:
            self.store.keep(out)
