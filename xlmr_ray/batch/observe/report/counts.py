"""What a shard's output rows hold, in counts small enough for its commit record, and which add up over shards.

Made by the writer from the output table, so that nobody reads a billion rows again to draw a histogram. Runs without
torch. Which columns are counted follows from their names and types, which are the same for every task that has them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlmr_ray.batch.input.columns import Columns

Scale = Literal["classes", "share", "linear", "log"]

STEP = 0.05  # width of a bin of the linear scale: scores, and similarities
OCTAVE = 8  # bins from a number to its double on the log scale: a bin is 9 % wide
NEAR = 3  # decimals of a bin's width: a number so near an edge is on it, as a norm of 0.9999999 is 1
ZERO = -(1 << 20)  # the log scale's bin of numbers that are not over zero
LONGEST = 40  # characters of a value that a column is grouped by; longer ones are text, not a kind of document
SHARD_VALUES = 64  # values of such a column in a shard
VALUES = 120  # and in a run: with more, the column tells documents apart, not kinds of them
CLASSES = 200  # classes counted by themselves in a shard, the most frequent ones; the others are added up
OTHERS = "(others)"
NONE = "(none)"


@dataclass
class Counts:
    """How often each value of one field came: a class by its name, a number by its bin.

    `share`: the number of rows for which it holds, under "1".
    """

    scale: Scale
    by: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.by.total()

    def add(self, other: Counts) -> None:
        if other.scale != self.scale:
            raise ValueError(f"counts of scale {other.scale} added to those of scale {self.scale}")
        self.by.update(other.by)

    def bins(self) -> Iterator[tuple[float, float, int]]:
        """The bins of numbers in order: from, to, count."""
        for number in sorted(map(int, self.by)):
            low, high = bin_edges(self.scale, number)
            yield low, high, self.by[str(number)]

    def quantile(self, q: float) -> float:
        """A number that a share `q` of the values is under, to a bin's width. NaN where there are none."""
        left = q * self.total
        for low, high, count in self.bins():
            if left <= count:
                return low + (high - low) * left / count
            left -= count
        return math.nan


@dataclass
class Summary:
    """Counts of rows: all, of each measure, and of the rows of each value of the columns they are grouped by.

    `groups` of a column are None where it has too many values, or too long ones.
    """

    rows: int = 0
    measures: dict[str, Counts] = field(default_factory=dict)
    groups: dict[str, dict[str, Summary] | None] = field(default_factory=dict)

    def add(self, other: Summary) -> None:
        """The rows of another shard."""
        self.rows += other.rows
        for name, counts in other.measures.items():
            self.measures.setdefault(name, Counts(counts.scale)).add(counts)
        for column, values in other.groups.items():
            mine = self.groups.setdefault(column, {})
            if values is None or mine is None:
                self.groups[column] = None
                continue
            for value, summary in values.items():
                mine.setdefault(value, Summary()).add(summary)
            if len(mine) > VALUES:
                self.groups[column] = None

    def to_json(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "rows": self.rows,
            "measures": {name: {"scale": c.scale, "counts": dict(c.by)} for name, c in self.measures.items()},
        }
        if self.groups:
            content["groups"] = {
                column: None if values is None else {value: one.short() for value, one in values.items()}
                for column, values in self.groups.items()
            }
        return content

    def short(self) -> list[Any]:
        """As JSON where the scales are known: a record of few rows is mostly this."""
        return [self.rows, {name: dict(counts.by) for name, counts in self.measures.items() if counts.by}]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        measures = {name: Counts(one["scale"], Counter(one["counts"])) for name, one in content["measures"].items()}
        groups: dict[str, dict[str, Summary] | None] = {
            column: None
            if values is None
            else {
                value: cls(rows, {name: Counts(measures[name].scale, Counter(by)) for name, by in short.items()})
                for value, (rows, short) in values.items()
            }
            for column, values in content.get("groups", {}).items()
        }
        return cls(content["rows"], measures, groups)


def bin_edges(scale: Scale, number: int) -> tuple[float, float]:
    """From where to where a bin goes."""
    if scale == "linear":
        return number * STEP, (number + 1) * STEP
    if number == ZERO:
        return 0.0, 0.0
    return 2.0 ** (number / OCTAVE), 2.0 ** ((number + 1) / OCTAVE)


@dataclass(frozen=True)
class Measured:
    """A field of the rows as keys of counts; `rows` are the rows' indices, where not one key a row."""

    name: str
    scale: Scale
    keys: pa.Array
    rows: np.ndarray[Any, np.dtype[np.int64]] | None = None


def kinds(columns: Columns) -> list[str]:
    """The kept columns that may tell kinds of documents apart: not those that a task reads as text."""
    return [name for name in columns.keep if columns.column(name) not in columns.text.values()]


def summarize(
    output: pa.Table, prefixes: Sequence[str], columns: Sequence[str], *, kept: Sequence[str] = ()
) -> Summary:
    """The summary of a shard's output rows: `prefixes` of the job's tasks, the `columns` to group them by, and those
    `kept` from the input, which are no task's whatever their names.
    """
    output = output.combine_chunks()
    tasks = output.drop_columns([name for name in output.column_names if name in kept])
    measured = [one for prefix in dict.fromkeys(prefixes) for one in measured_columns(tasks, prefix)]
    whole = Summary(output.num_rows, {one.name: Counts(one.scale, value_counts(one.keys)) for one in measured})
    for column in columns:
        if column in output.column_names:
            whole.groups[column] = grouped(output[column], measured)
    return whole


def grouped(column: pa.ChunkedArray, measured: Sequence[Measured]) -> dict[str, Summary] | None:
    """The counts for each value of the column. None where these are no kinds of documents."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind) or kind == pa.bool_()
    ):
        return None
    values = pc.fill_null(column.cast(pa.string()), NONE)
    distinct = pc.unique(values).to_pylist()
    if len(distinct) > SHARD_VALUES or any(len(value) > LONGEST for value in distinct):
        return None
    values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], pa.string())
    found = {value: Summary(rows) for value, rows in value_counts(values).items()}
    for one in measured:
        of = values if one.rows is None else values.take(pa.array(one.rows))
        pairs = (
            pa.table({"of": of, "key": one.keys})
            .group_by(["of", "key"], use_threads=False)
            .aggregate([([], "count_all")])
        )
        for value, key, count in zip(*(pairs[name].to_pylist() for name in ("of", "key", "count_all")), strict=True):
            if key is not None:
                found[value].measures.setdefault(one.name, Counts(one.scale)).by[key] = count
    return found


def value_counts(keys: pa.Array) -> Counter[str]:
    """How often each key is there, nulls left out; of very many, those most often there."""
    found = pc.value_counts(keys)
    pairs = zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True)
    counts = Counter({key: count for key, count in pairs if key is not None})
    if len(counts) > CLASSES and not all(key.lstrip("-").isdigit() for key in counts):
        most = Counter(dict(counts.most_common(CLASSES)))
        most[OTHERS] += counts.total() - most.total()
        return most
    return counts


def measured_columns(output: pa.Table, prefix: str) -> Iterator[Measured]:
    """What is counted of one task's columns, by their names."""
    for column in output.column_names:
        name = column.removeprefix(prefix)
        if not column.startswith(prefix):
            continue
        values = pa.concat_arrays(output[column].chunks) if output[column].num_chunks else None
        if values is None:
            continue
        if name in ("label", "choice"):
            yield Measured(column, "classes", values.cast(pa.string()))
        elif name == "score":
            yield Measured(column, "linear", linear_bins(values))
        elif name in ("perplexity", "tokens"):
            yield Measured(column, "log", logarithmic(values))
        elif name == "truncated":
            yield Measured(column, "share", where(values))
        elif name == "answer":
            yield Measured(
                f"{column} none", "share", pc.if_else(pc.equal(values, ""), "1", pa.scalar(None, pa.string()))
            )
        elif name == "generated_text":
            yield Measured(f"{column} characters", "log", logarithmic(pc.utf8_length(values)))
        elif name == "embedding" and pa.types.is_fixed_size_list(values.type):
            yield Measured(f"{column} norm", "log", logarithmic(norms(values)))
        elif name in ("labels", "answers") and pa.types.is_list(values.type):
            best = first(values)
            if name == "labels":
                yield Measured(f"{column} first", "classes", best.field("label"))
            yield Measured(f"{column} first score", "linear", linear_bins(best.field("score")))
        elif name == "entities" and pa.types.is_list(values.type):
            number = pc.list_value_length(values)
            yield Measured(
                f"{column} none", "share", pc.if_else(pc.equal(number, 0), "1", pa.scalar(None, pa.string()))
            )
            rows = pc.list_parent_indices(values).to_numpy(zero_copy_only=False).astype(np.int64)
            yield Measured(column, "classes", pc.list_flatten(values).field("label"), rows)


def where(holds: pa.Array) -> pa.Array:
    """The key of a share in the rows for which it holds."""
    return pc.if_else(holds, pa.scalar("1"), pa.scalar(None, pa.string()))


def first(values: pa.Array) -> pa.StructArray:
    """The first element of each list, null where there is none."""
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1].astype(np.int64)
    return pc.list_flatten(values).take(pa.array(starts, mask=lengths == 0))


def norms(values: pa.Array) -> pa.Array:
    flat = pc.list_flatten(values).to_numpy(zero_copy_only=False).astype(np.float64)
    return pa.array(np.sqrt((flat.reshape(len(values), -1) ** 2).sum(1)) if len(values) else [], pa.float64())


def linear_bins(values: pa.Array) -> pa.Array:
    """Numbers to bins of `STEP`; the upper end of a bin counts in it, so that scores of 1 are among the highest."""
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    known = np.isfinite(numbers)
    with np.errstate(invalid="ignore"):
        bins = np.maximum(np.ceil(np.round(numbers / STEP, 6)) - 1, np.where(numbers == 0, 0, -np.inf))
    return keyed(bins, known)


def logarithmic(values: pa.Array) -> pa.Array:
    """Numbers to bins of an eighth of an octave; the upper end of a bin counts in it, so that where the longest texts
    are cut to 512 tokens no bin goes beyond that.
    """
    numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    known = np.isfinite(numbers)
    with np.errstate(invalid="ignore", divide="ignore"):
        bins = np.where(numbers > 0, np.ceil(np.round(np.log2(numbers) * OCTAVE, NEAR)) - 1, ZERO)
    return keyed(bins, known)


def keyed(bins: np.ndarray[Any, np.dtype[np.float64]], known: np.ndarray[Any, np.dtype[np.bool_]]) -> pa.Array:
    return pa.array(np.where(known, bins, 0).astype(np.int64), mask=~known).cast(pa.string())
