"""Batches of a Parquet file's columns as rows of a shard, each good or with an error code. No Python object is made of
a good row.
"""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import LISTS, SYSTEM, Columns, Problem, repair, role_text
from xlmr_ray.batch.input.readers.parquet_columns import is_list_of_text, is_text_type

HALVE_OVER = 1 << 30  # a string column's offsets are 32 bits: batches over this are halved
FINER = "\0finer"  # a column that the file cannot have: where a kept INT96 time is finer than microseconds


def row_tables(
    named: dict[str, pa.Array], first: int, columns: Columns, schema: pa.Schema, limit: int
) -> list[pa.Table]:
    """A batch as tables, halved while its strings would overflow the 32-bit offsets of a string column."""
    sizes = _row_bytes(named)
    if len(sizes) > 1 and (pc.sum(sizes).as_py() or 0) > HALVE_OVER:
        middle = len(sizes) // 2
        left = {name: column.slice(0, middle) for name, column in named.items()}
        right = {name: column.slice(middle) for name, column in named.items()}
        return [
            *row_tables(left, first, columns, schema, limit),
            *row_tables(right, first + middle, columns, schema, limit),
        ]
    problems: dict[int, Problem] = {}  # by row of the batch; the first problem of a row counts
    if (pc.max(sizes).as_py() or 0) > limit:
        for row in pc.indices_nonzero(pc.greater(sizes, limit)).to_pylist():
            problems[row] = Problem(codes.ROW_TOO_LARGE, f"{sizes[row]} bytes, the limit is {limit}")
        named = {name: _without(column, list(problems)) for name, column in named.items()}
    return [_table(named, len(sizes), first, problems, columns, schema)]


def _table(
    named: dict[str, pa.Array],
    count: int,
    first: int,
    problems: dict[int, Problem],
    columns: Columns,
    schema: pa.Schema,
) -> pa.Table:
    out: dict[str, pa.Array] = {}
    empty = pa.repeat(pa.scalar(""), count)
    out["id"] = empty
    if columns.id is not None:
        id = named[columns.id]
        id = _uuids(id) if pa.types.is_fixed_size_binary(id.type) else _sound(_as_strings(id), columns.id, problems)
        out["id"] = id.cast(pa.string()).fill_null("")
    for name, of in zip(columns.extra, columns.extra_columns, strict=True):
        type = schema.field(name).type
        column = _as_strings(named[of]) if type == pa.string() else named[of]
        column = _sound(column, of, problems)
        out[name] = column if column.type == type else column.cast(type)
    if FINER in named:
        for row in pc.indices_nonzero(named[FINER]).to_pylist():
            problems.setdefault(row, Problem(codes.UNFIT_VALUE, "a kept INT96 time is finer than microseconds"))
    changed: set[int] = set()
    for role, name in columns.text.items():
        out[role] = _sound(_as_strings(named[name]), name, problems)
        if role in LISTS:
            out[role] = _as_json(out[role], role, name, problems, changed)
        if out[role].null_count:
            for row in pc.indices_nonzero(out[role].is_null()).to_pylist():
                problems.setdefault(row, Problem(codes.NULL_FIELD, f"field {name!r} is null"))
    out["_row"] = pa.array(np.arange(first, first + count, dtype=np.int64))
    out["_code"] = out["_message"] = empty
    out["_changed"] = pa.array(np.isin(np.arange(count), list(changed)))
    if problems:
        for role in columns.text:
            out[role] = _without(out[role], list(problems))
        found = [problems.get(row) for row in range(count)]
        out["_code"] = pa.array([problem.code if problem else "" for problem in found], pa.string())
        words = [f"row {first + row}: {problem.message}" if problem else "" for row, problem in enumerate(found)]
        out["_message"] = pa.array(words, pa.string())
    return pa.table([out[name] for name in schema.names], schema=schema)


def failed_rows(low: int, high: int, code: str, reason: str, schema: pa.Schema) -> pa.Table:
    """Error rows for the rows [low, high) of the file."""
    count = high - low
    known = {
        "_row": pa.array(np.arange(low, high, dtype=np.int64)),
        "_code": pa.repeat(pa.scalar(code), count),
        "_message": pa.array([f"row {row}: {reason}" for row in range(low, high)], pa.string()),
        "_changed": pa.repeat(pa.scalar(False), count),
        "id": pa.repeat(pa.scalar(""), count),
    }
    return pa.table(
        [known[field.name] if field.name in known else pa.nulls(count, field.type) for field in schema], schema=schema
    )


def schema_of(columns: Columns, kept: tuple[pa.DataType, ...]) -> pa.Schema:
    own = [pa.int64(), pa.string(), pa.string(), pa.bool_(), pa.string()]
    return pa.schema(
        [
            *zip((*SYSTEM, "id"), own, strict=True),
            *zip(columns.extra, kept, strict=True),
            *((role, pa.string()) for role in columns.text),
        ]
    )


def _sound(column: pa.Array, name: str, problems: dict[int, Problem]) -> pa.Array:
    """The column with null for values that are not valid UTF-8 (Parquet readers do not look), each one a problem."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        bad = [row for row in range(len(column)) if not _is_sound(column.take(pa.array([row])))]
    for row in bad:
        problems.setdefault(row, Problem(codes.INVALID_UTF8, f"field {name!r} is not valid UTF-8"))
    return _without(column, bad)


def _as_json(column: pa.Array, role: str, name: str, problems: dict[int, Problem], changed: set[int]) -> pa.Array:
    """Lists as JSON, null for rows with a problem; `changed` gets the rows in which lone surrogates, which
    JSON can spell, are now U+FFFD.
    """
    texts: list[str | None] = []
    for row, value in enumerate(column.to_pylist()):
        text = None if row in problems else role_text(role, value, name)
        if isinstance(text, Problem):
            problems[row], text = text, None
        if text is not None and (repaired := repair(text)) != text:
            changed.add(row)
            text = repaired
        texts.append(text)
    return pa.array(texts, pa.string())


def _is_sound(value: pa.Array) -> bool:
    try:
        value.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _without(column: pa.Array, rows: list[int]) -> pa.Array:
    """The column with null in these rows."""
    if not rows:
        return column
    mask = np.zeros(len(column), dtype=bool)
    mask[rows] = True
    return column.take(pa.array(np.arange(len(column)), mask=mask))


def _row_bytes(named: dict[str, pa.Array]) -> pa.Array:
    """Bytes of each row's strings."""
    total: pa.Array = None
    for column in named.values():
        if is_list_of_text(column.type):
            inner = pc.binary_length(pc.list_flatten(column)).fill_null(0).to_numpy(zero_copy_only=False)
            parents = pc.list_parent_indices(column).to_numpy()
            lengths = pa.array(np.bincount(parents, inner, minlength=len(column)).astype(np.int64))
        elif not is_text_type(column.type) or pa.types.is_null(column.type):
            continue
        else:
            lengths = pc.binary_length(column).cast(pa.int64()).fill_null(0)
        total = lengths if total is None else pc.add(total, lengths)
    return pa.nulls(len(next(iter(named.values()))), pa.int64()) if total is None else total


def _as_strings(column: pa.Array) -> pa.Array:
    """Any kind of string, or bytes that should be UTF-8, as a string column; other types as they are. Unchecked."""
    if column.type in (pa.large_string(), pa.large_binary()):
        column = column.cast(pa.binary())
    return column.view(pa.string()) if pa.types.is_binary(column.type) else column


def without_views(column: pa.Array) -> pa.Array:
    """A column of views in a type that Arrow's functions take; any other as it is."""
    if column.type in (pa.string_view(), pa.binary_view()):
        is_string = column.type == pa.string_view()
        column = column.cast(pa.large_binary())
        column = column.view(pa.large_string()) if is_string else column
    return column


def _uuids(column: pa.Array) -> pa.Array:
    return pa.array([value and str(uuid.UUID(bytes=value)) for value in column.to_pylist()], pa.string())


def written_type(type: pa.DataType) -> pa.DataType:
    """The type in which a kept column is written: its own, but every kind of string is `string`."""
    return pa.string() if type == pa.large_string() else type
