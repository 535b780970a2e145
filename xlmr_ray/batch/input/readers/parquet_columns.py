"""Where the columns that a job names are in a Parquet file, and in which types they are read.

A name is that of a column; else the path of a field in structs, its parts joined by dots; else a constant: a
partition that the file's own path names, or a column of the table that the file is of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, SPANS, Columns
from xlmr_ray.batch.input.readers.raw import BadFile, missing

TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.null(),
)
_SHOWN = 20  # names of a file in a message


@dataclass(frozen=True)
class FoundColumn:
    """Where a name is: in the column `top`, in its structs by the names `inside`, at the indices `leaves` of the file's
    leaf columns. A constant has no column, and one `value` in all rows. `type`: that of the values, with dictionaries
    as what they hold.
    """

    type: pa.DataType
    top: str = ""
    inside: tuple[str, ...] = ()
    leaves: range = range(0)
    value: pa.Scalar | None = None
    is_uuid: bool = False
    has_int96: bool = False

    def column(self, batch: pa.RecordBatch) -> pa.Array:
        """The values in a batch."""
        if not self.leaves:
            return pa.repeat(self.value, batch.num_rows)
        column = batch.column(batch.schema.names.index(self.top))
        for name in self.inside:
            column = pc.struct_field(_storage(column), name)
        return _storage(column)


def find_columns(file: pq.ParquetFile, columns: Columns, constants: Mapping[str, pa.Scalar]) -> dict[str, FoundColumn]:
    """Each wanted name. Raises BadFile where one is missing, there more than once, or cannot be what it is read as."""
    schema = file.schema_arrow
    starts = list(_starts(schema))
    found = {name: _find(name, schema, starts, constants) for name in columns.wanted}
    found = {name: _with_storage(one, file) for name, one in found.items()}
    for role, name in columns.text.items():
        type = found[name].type
        fits = is_list_of_spans(type) if LISTS.get(role) == SPANS else role in LISTS and is_list_of_text(type)
        if not is_text_type(type) and not fits:
            wanted = f"a list of {LISTS[role]}" if role in LISTS else "a string"
            raise BadFile(codes.WRONG_COLUMN_TYPE, f"column {name!r} is {str(type)[:200]}, not {wanted}")
    if columns.id is not None:
        id = found[columns.id]
        if not (is_text_type(id.type) or pa.types.is_integer(id.type) or id.is_uuid):
            message = f"id column {columns.id!r} is {str(id.type)[:200]}, not a string, an integer or a UUID"
            raise BadFile(codes.WRONG_COLUMN_TYPE, message)
    return found


def _find(name: str, schema: pa.Schema, starts: Sequence[int], constants: Mapping[str, pa.Scalar]) -> FoundColumn:
    for top, inside in _readings(name):
        index = schema.names.index(top) if top in schema.names else -1
        if index < 0:
            continue
        if schema.names.count(top) > 1:
            raise BadFile(codes.AMBIGUOUS_COLUMN, f"column {name!r} is there more than once")
        below = _below(schema.field(index).type, inside, starts[index])
        if below is not None:
            path, type, leaves = below
            return FoundColumn(type, top, path, leaves)
    if name in constants:
        return FoundColumn(constants[name].type, value=constants[name])
    shown = ", ".join(one[:64] for one in schema.names[:_SHOWN])
    raise missing(name, f"the file has: {shown}")


def _readings(name: str) -> Iterator[tuple[str, str]]:
    """The whole name, then each split at a dot into a column and the rest."""
    yield name, ""
    for index in (index for index, char in enumerate(name[:-1]) if char == "."):
        yield name[:index], name[index + 1 :]


def _below(type: pa.DataType, rest: str, start: int) -> tuple[tuple[str, ...], pa.DataType, range] | None:
    """The path, type and leaves of the field that `rest` names in a type whose leaves begin at `start`."""
    if not rest:
        return (), type, range(start, start + count_leaves(type))
    if isinstance(type, pa.BaseExtensionType):
        type = type.storage_type
    if not isinstance(type, pa.StructType):
        return None
    names = [one.name for one in type]
    for name, deeper in _readings(rest):
        if names.count(name) == 1:
            index = names.index(name)
            before = sum(count_leaves(one.type) for one in list(type)[:index])
            if (found := _below(type.field(index).type, deeper, start + before)) is not None:
                path, inner, leaves = found
                return (name, *path), inner, leaves
    return None


def _with_storage(one: FoundColumn, file: pq.ParquetFile) -> FoundColumn:
    """With what only Parquet's own schema tells, and in the type without extensions, dictionaries and views."""
    leaves = [file.schema.column(index) for index in one.leaves]
    is_uuid = one.type.num_fields == 0 and any(leaf.logical_type.type == "UUID" for leaf in leaves)
    has_int96 = any(leaf.physical_type == "INT96" for leaf in leaves)
    return FoundColumn(plain_type(one.type), one.top, one.inside, one.leaves, one.value, is_uuid, has_int96)


def plain_type(type: pa.DataType) -> pa.DataType:
    """The type with every extension as its storage, every dictionary as what it holds, every view as no view."""
    if isinstance(type, pa.BaseExtensionType):
        return plain_type(type.storage_type)
    if isinstance(type, pa.DictionaryType):
        return plain_type(type.value_type)
    if type in (pa.string_view(), pa.binary_view()):
        return pa.string() if type == pa.string_view() else pa.binary()
    if not needs_plain(type):
        return type
    if isinstance(type, pa.StructType):
        return pa.struct([one.with_type(plain_type(one.type)) for one in type])
    if isinstance(type, pa.MapType):
        return pa.map_(plain_type(type.key_type), type.item_field.with_type(plain_type(type.item_type)))
    value = type.value_field.with_type(plain_type(type.value_type))
    if isinstance(type, pa.FixedSizeListType):
        return pa.list_(value, type.list_size)
    return pa.large_list(value) if isinstance(type, pa.LargeListType) else pa.list_(value)


def needs_plain(type: pa.DataType) -> bool:
    """Whether there is a dictionary, a view or an extension in the type."""
    if isinstance(type, pa.DictionaryType | pa.BaseExtensionType) or type in (pa.string_view(), pa.binary_view()):
        return True
    return any(needs_plain(type.field(index).type) for index in range(type.num_fields))


def is_text_type(type: pa.DataType) -> bool:
    return plain_type(type) in TEXTS


def is_list(type: pa.DataType) -> bool:
    return isinstance(type, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def is_list_of_text(type: pa.DataType) -> bool:
    return is_list(type) and type.value_type in (pa.string(), pa.large_string())


def is_list_of_spans(type: pa.DataType) -> bool:
    return is_list(type) and is_list(type.value_type) and pa.types.is_integer(type.value_type.value_type)


def count_leaves(type: pa.DataType) -> int:
    """Columns of the Parquet file that hold values of the type."""
    if isinstance(type, pa.BaseExtensionType):
        return count_leaves(type.storage_type)
    if isinstance(type, pa.DictionaryType) or type.num_fields == 0:
        return 1
    return sum(count_leaves(type.field(index).type) for index in range(type.num_fields))


def _starts(schema: pa.Schema) -> Iterator[int]:
    start = 0
    for one in schema:
        yield start
        start += count_leaves(one.type)


def _storage(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column
