"""Whether what an incremental run has scored is like what was scored before it: of each thing that is counted of the
rows (labels, scores, lengths), in all and by each kept column, such as the language.

Two spreads over bins are compared by the population stability index, the sum of (p - q) ln(p / q). Of few rows it is
far from 0 by chance: what chance explains is taken off. So it may be held against the usual 0.1 (some) and 0.25 (much)
however many rows there are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.json_by_line import parsed
from xlmr_ray.batch.ledger.snapshot import read_head
from xlmr_ray.batch.observe.report.counts import OTHERS, Summary
from xlmr_ray.batch.store.base import Store

VERSION = 1
BINS = 10  # of numbers: tenths of the rows before
RARE = 0.01  # classes that are rarer in both are one bin
UNLIKELY = 3.7  # deviations of a normal distribution that chance explains: once in 10,000 spreads


@dataclass(frozen=True, slots=True)
class Shift:
    """How one spread has changed: of a `measure` over the rows with a `value` in a `column` ("" for all rows), or,
    where the measure is "", of the rows over the values of a column. `before` and `after` are numbers of rows; `psi`
    is the index less what chance explains, `unseen` the share of the new rows whose class was not there before.
    """

    measure: str
    column: str
    value: str
    before: int
    after: int
    psi: float
    unseen: float

    @property
    def size(self) -> float:
        """What a job's bound is held against."""
        return max(self.psi, self.unseen)

    def __str__(self) -> str:
        what = self.measure or f"rows by {self.column}"
        where = f" where {self.column} is {self.value}" if self.measure and self.column else ""
        unseen = f", {self.unseen:.1%} never seen before" if self.unseen else ""
        return f"{what}{where}: stability index {self.psi:.3f}{unseen} ({self.after:,} rows against {self.before:,})"


@dataclass(frozen=True)
class Drift:
    """A run against the table of the run `after` that it comes after: the largest shift first. `scored` is what was
    scored before and by this run, for the next one.
    """

    run_id: str
    after: str
    shifts: tuple[Shift, ...]
    scored: Summary

    @property
    def largest(self) -> Shift | None:
        return self.shifts[0] if self.shifts else None

    def past(self, bound: float | None) -> tuple[Shift, ...]:
        """The shifts that a job with this bound does not allow."""
        return tuple(one for one in self.shifts if bound is not None and one.size > bound)


def drift_key(run_id: str) -> str:
    return f"_runs/{run_id}/drift.json"


def leave_drift(store: Store, run_id: str, after: str) -> Drift:
    """Compares a run, all of whose shards are committed, and leaves what was found beside its plan. All rows count that
    its table will have.
    """
    own, before = scored_by(store, run_id), scored_until(store, after)
    found = tuple(sorted(shifts(before, own), key=lambda one: -one.size))
    before.add(own)
    drift = Drift(run_id, after, found, before)
    content = {
        "version": VERSION,
        "run_id": run_id,
        "after": after,
        "shifts": [asdict(one) for one in found],
        "scored": before.to_json(),
    }
    store.put(drift_key(run_id), json.dumps(content, ensure_ascii=False, allow_nan=False).encode())
    return drift


def read_drift(store: Store, run_id: str) -> Drift | None:
    """What was left of a run; None for one that has no run before it. Raises `Damaged`."""
    try:
        data, _ = store.get(drift_key(run_id))
    except FileNotFoundError:
        return None
    content = parsed(data, store.url(drift_key(run_id)))
    found = tuple(Shift(**one) for one in content["shifts"])
    return Drift(content["run_id"], content["after"], found, Summary.from_json(content["scored"]))


def scored_until(store: Store, run_id: str) -> Summary:
    """Of all rows that the chain of runs up to this one has scored, those that were replaced later, too."""
    if (known := read_drift(store, run_id)) is not None:
        return known.scored
    head = read_head(store, run_id)
    total = Summary()
    for one in head.runs if head else (run_id,):
        total.add(scored_by(store, one))
    return total


def scored_by(store: Store, run_id: str) -> Summary:
    """Of the rows of one run, without the inputs that it has withdrawn."""
    gone = {record.source_key for record in committed(store, run_id) if not record.source_etag}
    total = Summary()
    for record in committed(store, run_id):
        if record.stats.summary and record.source_key not in gone:
            total.add(Summary.from_json(record.stats.summary))
    return total


def shifts(before: Summary, after: Summary) -> Iterator[Shift]:
    """Every spread that both have rows of."""
    yield from measured_shifts("", "", before, after)
    for column, values in after.groups.items():
        known = before.groups.get(column)
        if not values or not known:
            continue
        spread = {name: Counter({value: one.rows for value, one in part.items()}) for name, part in
                  (("before", known), ("after", values))}  # fmt: skip
        yield shift("", column, "", "classes", spread["before"], spread["after"])
        for value in sorted(values.keys() & known.keys()):
            yield from measured_shifts(column, value, known[value], values[value])


def measured_shifts(column: str, value: str, before: Summary, after: Summary) -> Iterator[Shift]:
    for name, counts in after.measures.items():
        known = before.measures.get(name)
        if known is None or known.scale != counts.scale:
            continue
        if counts.scale == "share":
            parts = (Counter({"1": one.total, "0": rows - one.total}) for one, rows in
                     ((known, before.rows), (counts, after.rows)))  # fmt: skip
            yield shift(name, column, value, "share", *parts)
        elif known.total and counts.total:
            yield shift(name, column, value, counts.scale, known.by, counts.by)


def shift(
    measure: str, column: str, value: str, scale: str, before: Mapping[str, int], after: Mapping[str, int]
) -> Shift:
    """The change from one spread, how often each key came, to another."""
    rows, new = sum(before.values()), sum(after.values())
    unseen = 0
    if scale == "classes":
        unseen = sum(count for key, count in after.items() if key != OTHERS and not before.get(key))
        bins = class_bins(before, after)
    elif scale == "share":
        bins = {key: key for key in (*before, *after)}
    else:
        bins = number_bins(before, after)
    first, second = (binned(spread, bins) for spread in (before, after))
    index = max(0.0, stability(first, second) - chance(len(first.keys() | second.keys()), rows, new))
    return Shift(measure, column, value, rows, new, round(index, 6), round(unseen / max(1, new), 6))


def class_bins(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, str]:
    """The bin of each class: its own, or one for all that are rare."""
    rows, new = max(1, sum(before.values())), max(1, sum(after.values()))
    return {
        key: key if before.get(key, 0) >= RARE * rows or after.get(key, 0) >= RARE * new else OTHERS
        for key in {**before, **after}
    }


def number_bins(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, str]:
    """The bin of each number's key: neighbours together, until they are a tenth of the rows before."""
    left = sum(before.values())
    least = left / BINS
    bins: dict[str, str] = {}
    number, held = 0, 0
    for key in sorted({**before, **after}, key=int):
        if held >= least and left:
            number, held = number + 1, 0
        bins[key] = str(number)
        held += before.get(key, 0)
        left -= before.get(key, 0)
    return bins


def binned(spread: Mapping[str, int], bins: Mapping[str, str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for key, count in spread.items():
        found[bins[key]] += count
    return found


def stability(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """The population stability index; half a row more in each bin, so that none is empty."""
    keys = before.keys() | after.keys()
    rows, new = (sum(spread.values()) + len(keys) / 2 for spread in (before, after))
    shares = (((before.get(key, 0) + 0.5) / rows, (after.get(key, 0) + 0.5) / new) for key in keys)
    return math.fsum((p - q) * math.log(p / q) for p, q in shares)


def chance(bins: int, before: int, after: int) -> float:
    """What the index of two samples of one spread is at most: nearly chi-squared over the rows (Yurdakul 2018), its
    quantile by Wilson and Hilferty.
    """
    free = bins - 1
    if free < 1 or not before or not after:
        return 0.0
    part = 2 / (9 * free)
    return float(free * (1 - part + UNLIKELY * math.sqrt(part)) ** 3 * (1 / before + 1 / after))


def drift_as_json(drift: Drift) -> dict[str, Any]:
    """For a report, without what is kept for the next run."""
    return {"after": drift.after, "shifts": [asdict(one) for one in drift.shifts]}
