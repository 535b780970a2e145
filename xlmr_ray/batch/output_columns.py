"""The columns of the output: all known, and checked to be distinct, when the plan is made."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.errors import UserError

# Of every row: where it comes from, its id, and whether its text had to be changed.
OF_ROW = ("source", "row", "id", "text_changed")


def check_output_columns(columns: Columns, tasks: Sequence[tuple[str, str, pa.Schema]]) -> None:
    """Raises UserError where two columns of the output would have one name, or names that differ by case only: many
    engines that read Parquet take those for one. `tasks`: name, prefix and schema of each.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, what in _named_columns(columns, tasks):
        if (other := seen.get(name.casefold())) is None:
            seen[name.casefold()] = name, what
        elif other[0] == name:
            way = _way_out(columns, name, what)
            raise UserError(f"the output would have two columns {name!r}, {other[1]} and {what}: {way}")
        else:
            raise UserError(
                f"the output would have columns {other[0]!r} ({other[1]}) and {name!r} ({what}), which differ by case "
                f"only: {_way_out(columns, name, what)}"
            )


def _named_columns(columns: Columns, tasks: Sequence[tuple[str, str, pa.Schema]]) -> Iterator[tuple[str, str]]:
    for name in OF_ROW:
        yield name, "the row's own"
    for task, prefix, schema in tasks:
        for name in schema.names:
            yield prefix + name, f"task {task}'s"
    for name in columns.keep:
        if not (name == "id" and columns.id == columns.column(name)):  # kept and the id: one column
            yield name, "kept"


def _way_out(columns: Columns, name: str, what: str) -> str:
    if what != "kept":
        return "give the task another name in the job file (tasks: [{task: …, name: …}])"
    return f"give it another name in the output (input.keep: {{{columns.column(name)}: …}})"
