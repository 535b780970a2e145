"""Columns that have one value in all rows of a file, beside those that are in the file: a table's log has them, or its
schema, where a file is older than a column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

_UTC = [pa.timestamp(unit, "UTC") for unit in ("us", "ns")]
_PLAIN = [pa.string(), pa.bool_(), pa.float32(), pa.float64(), pa.date32(), pa.timestamp("us"), pa.timestamp("ns")]
_INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
_TYPES = {str(type): type for type in (*_UTC, *_PLAIN, *_INTEGERS)}
_STRINGS = (pa.large_string(), pa.string_view())


def type_name(type: pa.DataType) -> str:
    """As it stands in a plan; "null" for a type that has no name here."""
    name = str(pa.string() if type in _STRINGS else type)
    return name if name in _TYPES else "null"


def constants_to_text(columns: Mapping[str, tuple[pa.Scalar | None, pa.DataType]]) -> str:
    """By name a value, None for null, and its type. Raises ValueError, with the name, for a value of a type that is not
    written here.
    """
    lines = {}
    for name, (value, type) in columns.items():
        kind = type_name(type)
        there = value is not None and value.is_valid
        if there and kind == "null":
            raise ValueError(name)
        lines[name] = [value.cast(pa.string()).as_py() if value is not None and there else None, kind]
    return json.dumps(lines, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if lines else ""


def constants_from_text(text: str) -> dict[str, pa.Scalar]:
    found = json.loads(text) if text else {}
    return {
        name: pa.scalar(value, pa.string()).cast(_TYPES[kind]) if kind in _TYPES else pa.scalar(None, pa.null())
        for name, (value, kind) in found.items()
    }
