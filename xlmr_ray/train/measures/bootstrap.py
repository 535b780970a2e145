"""How sure a figure is: rows drawn again and again (Efron's bootstrap), for two models the same ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.train.measures.by_task import Measure, Rows

LEVEL = 95  # percent


@dataclass(frozen=True)
class Figure:
    """A value with the interval that holds 95 % of those on rows drawn again."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The second model's value less the first's; `p` is the two-sided share of draws on the other side of 0."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class Drawn:
    """A measure over rows, and over rows drawn again `(D)`."""

    value: float
    again: NDArray[np.float64]


def draw(measure: Measure, rows: Rows, *, count: int, seed: int) -> Drawn:
    """Draws as many of the rows as there are, some of them more than once, so many times; the same for each measure."""
    random = np.random.default_rng([seed, len(rows)])
    again = [measure(rows[random.integers(0, len(rows), len(rows))]) for _ in range(count)]
    return Drawn(measure(rows), np.array(again))


def figure(one: Drawn) -> Figure:
    """A measure with its interval."""
    return Figure(one.value, *interval(one.again))


def difference(first: Drawn, second: Drawn) -> Difference:
    """Of one measure of two models on the same draws."""
    found = second.again - first.again
    known = found[~np.isnan(found)]
    sides = ((known <= 0).mean(), (known >= 0).mean()) if len(known) else (1.0, 1.0)
    return Difference(second.value - first.value, *interval(found), float(min(1.0, 2 * min(sides))))


def interval(found: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of values, those that are NaN left out."""
    known = found[~np.isnan(found)]
    if not len(known):
        return float("nan"), float("nan")
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)
