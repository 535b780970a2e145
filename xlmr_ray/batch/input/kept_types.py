"""The types of the kept columns: the output is one table, and the files of an input may write one column in several.

Types are widened where that changes no value: null to any, narrow integers to wide ones, integers to floats, short
units of time to fine ones, a struct to one with more fields. A value that its widened type cannot hold, such as an
integer over 2^53 in a column of doubles, is an error row. Other types do not go together, and the job is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from xlmr_ray.batch import codes
from xlmr_ray.errors import UserError


@dataclass
class KeptTypes:
    """The types so far, over all files of a plan. `settled`: they are those of a published table, and stay.

    `fields`: by column its type and the file that it is from. `differ`: some file is to be cast.
    """

    names: Sequence[str]
    settled: bool = False
    fields: dict[str, tuple[pa.DataType, str]] = field(default_factory=dict)
    differ: bool = False

    def add(self, file: str, types: Sequence[pa.DataType]) -> None:
        """The types of one more file. Raises UserError, naming both files, for those that do not go together."""
        for name, type in zip(self.names, types, strict=True):
            there, first = self.fields.setdefault(name, (type, file))
            if there == type:
                continue
            both = wider(there, type)
            if both is None or (self.settled and both != there):
                raise UserError(
                    f"input.keep: column {name!r} is {_short_type(there)} in {first} and {_short_type(type)} in "
                    f"{file}, which do not go into one column; write one of the files anew, or leave the column out of "
                    "input.keep"
                )
            self.differ = True
            if both != there:
                self.fields[name] = (both, file)

    def schema(self) -> pa.Schema | None:
        """The types that all files are cast to; None where they have them already."""
        if not self.differ:
            return None
        return pa.schema([(name, _written(type)) for name, (type, _) in self.fields.items()])


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, None where there is none that Arrow casts both to."""
    try:
        schemas = [pa.schema([("", type)]) for type in (one, other)]
        both = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        for type in (one, other):
            pa.array([], type).cast(both)
    except pa.ArrowException:
        return None
    return both if all(_exact(type, both) for type in (one, other)) else None


def as_planned(table: pa.Table, kept: pa.Schema | None, names: Sequence[str]) -> pa.Table:
    """A shard's rows with the kept columns in their types of the output, null where the row has an error.

    A row with a value that its type cannot hold becomes an error row.
    """
    failed: dict[int, str] = {}
    for name in names:
        column = table[name]
        target = _written(column.type) if kept is None else kept.field(name).type
        if column.type == target:
            continue
        index = table.column_names.index(name)
        try:
            cast = pa.nulls(len(column), target) if pa.types.is_null(column.type) else column.cast(target)
        except pa.ArrowInvalid:
            cast, unfit = _one_by_one(column, target)
            for row in unfit:
                failed.setdefault(row, f"field {name!r} does not fit {target}, its type in the output")
        table = table.set_column(index, name, cast)
    return _with_errors(table, failed)


def schema_to_text(schema: pa.Schema) -> str:
    """For the plan's JSON, which must hold any type exactly."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """Raises ValueError for what is none."""
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from None


def _exact(type: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow's cast either keeps a value or refuses it: from a decimal to a float it rounds."""
    if pa.types.is_decimal(type) and pa.types.is_floating(target):
        return False
    if isinstance(type, pa.StructType) and isinstance(target, pa.StructType):
        return all(_exact(one.type, target.field(one.name).type) for one in type)
    if type.num_fields == target.num_fields:
        return all(_exact(type.field(i).type, target.field(i).type) for i in range(type.num_fields))
    return True


def _one_by_one(column: pa.ChunkedArray, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """The column cast, null where a value does not fit; and which rows these are."""
    parts, unfit = [], []
    for row in range(len(column)):
        value = column.slice(row, 1).combine_chunks()
        try:
            parts.append(value.cast(target))
        except pa.ArrowInvalid:
            parts.append(pa.nulls(1, target))
            unfit.append(row)
    return pa.concat_arrays(parts), unfit


def _with_errors(table: pa.Table, failed: dict[int, str]) -> pa.Table:
    fresh = {row: reason for row, reason in failed.items() if not table["_code"][row].as_py()}
    if not fresh:
        return table
    found, messages = table["_code"].to_pylist(), table["_message"].to_pylist()
    for row, reason in fresh.items():
        found[row], messages[row] = codes.UNFIT_VALUE, f"row {table['_row'][row].as_py()}: {reason}"
    for name, values in (("_code", found), ("_message", messages)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


def _written(type: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(type) else type


def _short_type(type: pa.DataType) -> str:
    return str(type)[:200]
