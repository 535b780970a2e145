"""From which score on a label counts, so that a share that was asked for is kept: of the rows above it that have the
label (precision), or of those that have the label the rows above it (recall).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.errors import UserError

Kind = Literal["precision", "recall"]
SURE = 0.95


@dataclass(frozen=True)
class Target:
    """The least precision or recall of each label."""

    kind: Kind
    value: float


def target_of(*, precision: float | None, recall: float | None) -> Target | None:
    """What the two options of the command ask for; None where neither is given. Raises UserError."""
    if precision is not None and recall is not None:
        raise UserError("--precision, --recall: expected one of them, got both")
    value = recall if precision is None else precision
    if value is None:
        return None
    kind: Kind = "recall" if precision is None else "precision"
    if not 0 < value < 1:
        raise UserError(f"--{kind}: expected a share above 0 and below 1, got {value:g}")
    return Target(kind, value)


@dataclass(frozen=True)
class Threshold:
    """A label's threshold on some rows: `right` of the `above` rows that reach it have the label, of `rows` that have
    it. `value` is None where no threshold is known to keep what was asked for.
    """

    label: str
    value: float | None
    above: int
    right: int
    rows: int


def threshold_of(label: str, scores: NDArray[np.float32], has: NDArray[np.bool_], target: Target) -> Threshold:
    """The threshold of one label by its `scores (N)` and which rows `has (N)` it: for precision the lowest one that
    keeps it, for recall the highest, of those that rows have as a score. That it is kept is known by the lower bound
    of Clopper and Pearson, 95 % sure. For recall 0, which keeps every row, where no other one is known to.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores = scores[order]
    right = np.cumsum(has[order])
    ends = np.flatnonzero(np.append(np.diff(sorted_scores) != 0, True))  # rows of one score count together
    total = int(has.sum())
    out_of = ends + 1 if target.kind == "precision" else np.full(len(ends), total)
    kept = np.flatnonzero(lower_bound(right[ends], out_of) >= target.value)
    if not len(kept):
        if target.kind == "precision":
            return Threshold(label, None, 0, 0, total)
        return Threshold(label, 0.0, len(scores), total, total)
    end = int(ends[kept[-1] if target.kind == "precision" else kept[0]])
    return Threshold(label, float(sorted_scores[end]), end + 1, int(right[end]), total)


def lower_bound(right: NDArray[Any], out_of: NDArray[Any]) -> NDArray[np.float64]:
    """The share `(N)` that is reached at least, 95 % sure, where so many out of so many were right (Clopper, Pearson
    1934); 0 where none was.
    """
    try:
        from scipy.stats import beta
    except ImportError:
        raise UserError("thresholds need scipy: pip install 'xlmr-ray[train]'") from None
    found = beta.ppf(1 - SURE, np.maximum(right, 1), np.maximum(out_of - right, 0) + 1)
    bound: NDArray[np.float64] = np.where(right > 0, found, 0.0)
    return bound


def least_rows(target: Target) -> int:
    """How many rows, all of them right, it takes to know that a target is kept: the bound of n out of n is the n-th
    root of what is left to chance.
    """
    return math.ceil(math.log(1 - SURE) / math.log(target.value))
