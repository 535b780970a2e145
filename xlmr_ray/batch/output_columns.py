"""The columns of the output: all known, and checked to be distinct, when the plan is made."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from xlmr_ray.errors import UserError

# Of every row: where it comes from, its id, and whether its text had to be changed.
OF_ROW = ("source", "row", "id", "text_changed")


def check_output_columns(
    keep: Sequence[str], id_column: str | None, tasks: Sequence[tuple[str, str, pa.Schema]]
) -> None:
    """Raises UserError where two columns of the output would have one name, or names that differ by case only: many
    engines that read Parquet take those for one. `tasks`: name, prefix and schema of each.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, what in _named(keep, id_column, tasks):
        if (other := seen.get(name.casefold())) is None:
            seen[name.casefold()] = name, what
        elif other[0] == name:
            raise UserError(f"the output would have two columns {name!r}, {other[1]} and {what}: {_way_out(what)}")
        else:
            raise UserError(
                f"the output would have columns {other[0]!r} ({other[1]}) and {name!r} ({what}), which differ by case "
                f"only: {_way_out(what)}"
            )


def _named(
    keep: Sequence[str], id_column: str | None, tasks: Sequence[tuple[str, str, pa.Schema]]
) -> Iterator[tuple[str, str]]:
    for name in OF_ROW:
        yield name, "the row's own"
    for task, prefix, schema in tasks:
        for name in schema.names:
            yield prefix + name, f"task {task}'s"
    for name in keep:
        if not (name == "id" and id_column == "id"):  # kept and the id: one column
            yield name, "kept"


def _way_out(what: str) -> str:
    if what == "kept":
        return "take it out of input.keep, or rename it in the input"
    return "give the task another name in the job file (tasks: [{task: …, name: …}])"
