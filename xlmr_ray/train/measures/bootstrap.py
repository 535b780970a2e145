"""How sure a figure is: rows drawn again and again (Efron's bootstrap), for two models the same ones."""

from collections.abc import Iterator
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


def draws(rows: Rows, count: int, seed: int) -> Iterator[Rows]:
    """The rows drawn so many times, each time as many as there are, with some of them more than once."""
    random = np.random.default_rng([seed, len(rows)])
    for _ in range(count):
        yield rows[random.integers(0, len(rows), len(rows))]


def figure(measure: Measure, rows: Rows, *, count: int, seed: int) -> Figure:
    """A measure over rows."""
    return Figure(measure(rows), *interval(np.array([measure(drawn) for drawn in draws(rows, count, seed)])))


def difference(first: Measure, second: Measure, rows: Rows, *, count: int, seed: int) -> Difference:
    """Of one measure of two models over the same rows, drawn together."""
    found = np.array([second(drawn) - first(drawn) for drawn in draws(rows, count, seed)])
    known = found[~np.isnan(found)]
    sides = ((known <= 0).mean(), (known >= 0).mean()) if len(known) else (1.0, 1.0)
    return Difference(second(rows) - first(rows), *interval(found), float(min(1.0, 2 * min(sides))))


def interval(found: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of values, those that are NaN left out."""
    known = found[~np.isnan(found)]
    if not len(known):
        return float("nan"), float("nan")
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)
