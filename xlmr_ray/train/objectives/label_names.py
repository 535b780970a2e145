"""Labels of rows: a name each, several, or a number."""

import json
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import some
from xlmr_ray.train.rows import row_location

LONGEST = 40  # characters of a label in a message
SINGLE, MULTI, REGRESSION = "single", "multi", "regression"
PROBLEM_TYPES = {
    SINGLE: "single_label_classification",
    MULTI: "multi_label_classification",
    REGRESSION: "regression",
}


def problem_of(rows: pa.Table, asked: str) -> str:
    """What kind of label the rows have: as asked, or by their type: lists are several labels a row, fractions a number.

    Raises UserError where whole numbers as floats, or fractions as strings, may be either.
    """
    if asked != "auto":
        return asked
    kind = rows["label"].type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return MULTI
    values = rows["label"].to_pylist()
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if all(float(value).is_integer() for value in values):
            raise UserError("train.label: whole numbers in a column of fractions: say problem: single or regression")
        return REGRESSION
    if not pa.types.is_string(kind):
        return SINGLE
    if all(value.lstrip().startswith("[") for value in values) and all(is_json_list(value) for value in values):
        return MULTI
    numbers = [finite_number(value) for value in values]
    if all(n is not None for n in numbers) and not all(n is not None and n.is_integer() for n in numbers):
        raise UserError("train.label: the labels are fractions written as text: say problem: regression or single")
    return SINGLE


def is_json_list(value: str) -> bool:
    try:
        return isinstance(json.loads(value), list)
    except ValueError:
        return False


def finite_number(value: object) -> float | None:
    """A value as a finite number, None where it is none."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found) else None


def name_of(value: object) -> str:
    """A label's name, the same from every format: as JSON has what is no string, a whole number without a point."""
    if isinstance(value, float | Decimal):
        value = int(value) if float(value).is_integer() else float(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def single_names(rows: pa.Table) -> list[str]:
    """The label `(N)` of each row."""
    return [name_of(value) for value in rows["label"].to_pylist()]


def several_names(rows: pa.Table) -> list[list[str]]:
    """The labels of each row `(N)`, from lists or their JSON. Raises UserError."""
    found = []
    for index, value in enumerate(rows["label"].to_pylist()):
        given = value
        if isinstance(value, str):
            try:
                given = json.loads(value)
            except ValueError:
                given = None
        if not isinstance(given, list):
            raise UserError(f"{at(rows, index)}: the label is no list, nor the JSON of one, as problem: multi needs")
        found.append([name_of(one) for one in given])
    return found


def hot_of(rows: pa.Table, known: Sequence[str]) -> NDArray[np.float32]:
    """Ones `(N, labels)` where a row has a label, of rows with several. Raises UserError for one that is not known."""
    several = several_names(rows)
    flat = [name for own in several for name in own]
    owner = np.repeat(np.arange(len(several)), [len(own) for own in several])
    hot = np.zeros((len(several), len(known)), np.float32)
    hot[owner, indices(rows.take(pa.array(owner)), flat, known)] = 1
    return hot


def label_numbers(rows: pa.Table) -> NDArray[np.float32]:
    """The number `(N)` of each row. Raises UserError."""
    found = [finite_number(value) for value in rows["label"].to_pylist()]
    for index, value in enumerate(found):
        if value is None:
            raise UserError(f"{at(rows, index)}: the label is no finite number")
    return np.array(found, np.float32)


def at(rows: pa.Table, index: int) -> str:
    """Where a row is, for messages."""
    return row_location(rows.slice(index, 1).select(["_source", "_row"]).to_pylist()[0])


def quoted_label(name: str) -> str:
    """A label for messages; a long one may be a document, of a column that was named by mistake."""
    return repr(name) if len(name) <= LONGEST else f"of {len(name)} characters"


def indices(rows: pa.Table, names: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """The index of each row's label `(N)` among the known ones. Raises UserError for one that is none of them."""
    index_of = {name: index for index, name in enumerate(known)}
    found = np.array([index_of.get(name, -1) for name in names], np.int64)
    if (found < 0).any():
        first = int((found < 0).argmax())
        raise UserError(
            f"{at(rows, first)}: label {quoted_label(names[first])} is none of the checkpoint's: {some(known, 12)}"
        )
    return found


def labels_in_order(found: Sequence[str], before: Sequence[str]) -> list[str]:
    """The labels in the checkpoint's order where it has the same ones, or more, by name; sorted else."""
    if set(found) <= set(before):
        return list(before)
    return sorted(set(found), key=lambda name: (finite_number(name) is None, finite_number(name) or 0.0, name))
