"""The columns of a published table. Read without torch, by every worker that compares vectors."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.store.filesystem import filesystem, reading
from xlmr_ray.errors import UserError
from xlmr_ray.text.plural import some

NO_COLUMN = "none"  # for `by`: all documents are of one language


def table_schema(output: str, files: tuple[str, ...]) -> pa.Schema:
    """Of a published table. Raises UserError where it has no rows."""
    if not files:
        raise UserError(f"{output}: the published table has no rows")
    fs, path = filesystem(files[0])
    with reading(files[0]), fs.open(path, "rb") as file:
        return pq.read_schema(file)


def check_column(output: str, schema: pa.Schema, option: str, name: str, otherwise: str) -> None:
    if name not in schema.names:
        there = some([f"{field.name} ({field.type})" for field in schema], most=20)
        raise UserError(f"{output}: {option} {name}: no such column; there are {there}; {otherwise}")
