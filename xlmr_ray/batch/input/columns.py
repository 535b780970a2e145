"""Which columns the job reads, and the one table that every reader returns, whatever the format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import TASKS
from xlmr_ray.text.json_type import json_type

_SURROGATES = re.compile("[\ud800-\udfff]")
Value = str | bytes | None
SYSTEM = ("_row", "_code", "_message", "_changed")
STRINGS, SPANS = "strings", "[start, end] pairs"
# Roles whose values are lists, and of what. They are carried as JSON: so a table has only string columns.
LISTS = {role: STRINGS for task in TASKS.values() for role in task.list_roles} | {
    role: SPANS for task in TASKS.values() for role in task.span_roles
}


@dataclass(frozen=True)
class Columns:
    """`text`: role (what the task calls it) -> column of the input; `id` and `keep` are carried along.

    The columns of the roles in `LISTS` hold lists, or their JSON. `keep` are names in the output; `renamed`
    has the input's column of those that are called otherwise there. A kept column may be the id or a text column itself
    if the name is the same; it is then in the table once.
    """

    text: dict[str, str]
    id: str | None = None
    keep: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # name in the output, column of the input

    def __post_init__(self) -> None:
        own = {**self.text, "id": self.id}
        if not self.text:
            raise UserError("input.text: no column is named; name the column that holds the documents")
        if len(set(self.keep)) < len(self.keep):
            raise UserError("input.keep: a name is there twice")
        for name in (*self.text, *self.keep):
            if name in SYSTEM or (name in self.text and name == "id"):
                raise UserError(f"input: {name!r} is a name that the pipeline uses itself; rename the column")
        for name in self.keep:
            if name in own and own[name] != self.column(name):
                if name == "id" and self.id is None:
                    raise UserError(
                        f"input.keep: 'id' is the name of the row's id: say input.id: {self.column(name)}, and it is "
                        "carried along"
                    )
                raise UserError(
                    f"input.keep: {name!r} is also the name under which {own[name]} is carried; give it another name "
                    f"in the output (input.keep: {{{self.column(name)}: …}})"
                )

    def column(self, name: str) -> str:
        """The input's column of a kept name."""
        return dict(self.renamed).get(name, name)

    @property
    def extra(self) -> tuple[str, ...]:
        """Kept names that are not in the table already as the id or a text."""
        return tuple(name for name in self.keep if name not in self.text and name != "id")

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """The input's columns of these."""
        return tuple(map(self.column, self.extra))

    @property
    def wanted(self) -> tuple[str, ...]:
        """Columns of the input that are read, each once."""
        return tuple(dict.fromkeys([*self.text.values(), *([self.id] if self.id else []), *self.extra_columns]))

    def identity(self) -> dict[str, object]:
        """What of them decides a run. Those of runs from before columns could be renamed keep their form."""
        content = asdict(self)
        if not self.renamed:
            del content["renamed"]
        return content


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row is an error row. The message names the field and never quotes the document."""

    code: str
    message: str


@dataclass
class Rows:
    """Collects the rows of a line format. `where` says how messages name a position: "line 17", "record 3".

    Values are strings, or bytes that are known to be UTF-8.
    """

    columns: Columns
    where: Callable[[int], str]
    row: list[int] = field(default_factory=list)
    id: list[Value] = field(default_factory=list)
    values: list[list[Value]] = field(default_factory=list)  # a list for each of `columns.extra`, then for each role
    problems: dict[int, Problem] = field(default_factory=dict)  # by index in the lists

    def __post_init__(self) -> None:
        self.values = [[] for _ in (*self.columns.extra, *self.columns.text)]

    def good(self, row: int, id: Value, values: Sequence[Value]) -> None:
        """Add a row: the values of `columns.extra`, then those of the roles, in order."""
        self.row.append(row)
        self.id.append(id)
        for column, value in zip(self.values, values, strict=True):
            column.append(value)

    def bad(self, row: int, problem: Problem, id: Value = "", kept: Sequence[Value] = ()) -> None:
        """Add an error row, with the id and the kept columns where they could be read."""
        self.problems[len(self.row)] = problem
        self.good(row, id, [*kept, *[None] * (len(self.values) - len(kept))])

    def table(self) -> pa.Table:
        """The rows so far. Lone surrogates, which JSON can spell and UTF-8 cannot, become U+FFFD and set `_changed`."""
        count = len(self.row)
        changed: set[int] = set()
        ids, *values = (_string_array(column, changed) for column in [self.id, *self.values])
        codes = messages = [""] * count
        if self.problems:
            codes, messages = list(codes), list(messages)
            for index, problem in self.problems.items():
                codes[index] = problem.code
                messages[index] = f"{self.where(self.row[index])}: {problem.message}"
        head = [
            pa.array(self.row, pa.int64()),
            pa.array(codes, pa.string()),
            pa.array(messages, pa.string()),
            pa.array([index in changed for index in range(count)], pa.bool_()),
        ]
        return pa.table([*head, ids, *values], [*SYSTEM, "id", *self.columns.extra, *self.columns.text])


def _string_array(values: list[Value], changed: set[int]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        for index, value in enumerate(values):
            if isinstance(value, str) and (repaired := repair(value)) != value:
                values[index] = repaired
                changed.add(index)
        return pa.array(values, pa.string())


def repair(text: str) -> str:
    """Replace surrogates by U+FFFD; the JSON parser has already joined those that make a pair."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def role_text(role: str, value: object, name: str, *, present: bool = True) -> str | Problem:
    """A role's value as it is carried, or what is wrong with it: a string, or for `LISTS` a list as JSON.

    `name` is the field, `present` whether the row has it.
    """
    if not present:
        return Problem(codes.MISSING_FIELD, f"field {name!r} is missing")
    if value is None:
        return Problem(codes.NULL_FIELD, f"field {name!r} is null")
    if role in LISTS:
        return _list_as_json(role, value, name)
    if isinstance(value, str):
        return value
    return Problem(codes.WRONG_TYPE, f"field {name!r} is {json_type(value)}, not a string")


def _list_as_json(role: str, value: object, name: str) -> str | Problem:
    of = LISTS[role]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Problem(codes.WRONG_TYPE, f"field {name!r} is a string, and not the JSON of an array of {of}")
    if not isinstance(value, list):
        return Problem(codes.WRONG_TYPE, f"field {name!r} is {json_type(value)}, not an array of {of}")
    if not value and of == STRINGS:
        return Problem(codes.WRONG_TYPE, f"field {name!r} is an empty array")
    for index, item in enumerate(value):
        if of == STRINGS and not isinstance(item, str):
            return Problem(codes.WRONG_TYPE, f"field {name!r}: item {index} is {json_type(item)}, not a string")
        if of == SPANS and not _is_span(item):
            return Problem(codes.WRONG_TYPE, f"field {name!r}: item {index} is no pair [start, end] of whole numbers")
    return json.dumps(value, ensure_ascii=False)


def _is_span(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(type(one) is int for one in item)


def kept_text(value: object) -> str | None:
    """A kept field of a JSON object as a string: strings as they are, null as null, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
