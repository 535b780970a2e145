"""Where the texts are: a corpus, as a job reads its input, or a kept column of a published table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlmr_ray.batch.duplicates.table_columns import NO_COLUMN, check_column, table_schema
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.json_by_line import canonical
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.batch.store.filesystem import filesystem, reading
from xlmr_ray.errors import UserError

SHARD_ROWS = 8192


@dataclass(frozen=True)
class Texts:
    """Parts by name, what decides their rows, and how one is read: `source, row, language, text`, with every row of it,
    error rows with a null text. `lost` are files, or ends of files, that cannot be read.
    """

    parts: Mapping[str, Shard | str]
    identity: Mapping[str, object]
    read: Callable[[Any], pa.Table]
    lost: tuple[DeadLetter, ...] = ()


def corpus_of(job: Job, by: str) -> Texts:
    """A job's input. Raises UserError where nothing of it can be read, as for a column that is not there."""
    column = {new: old for old, new in job.input.kept.items()}.get(by, by)
    keep = () if by == NO_COLUMN else (by,)
    renamed = ((by, column),) if keep and column != by else ()
    columns = Columns(text={"text": job.input.text}, keep=keep, renamed=renamed)
    readers = job.input.readers
    with reading(", ".join(job.input.path)):
        inputs = find_inputs(
            job.input.path, format=job.input.format, output=job.output.path, version=job.input.version, columns=columns
        ).inputs
        planned = plan_shards(inputs, shard_rows=SHARD_ROWS, columns=columns, readers=readers, limit=job.input.limit)
        pieces = list(planned)
    shards = {piece.id: piece for piece in pieces if isinstance(piece, Shard)}
    lost = tuple(piece for piece in pieces if isinstance(piece, DeadLetter))
    if lost and not shards:
        otherwise = f"; --by {NO_COLUMN} compares all documents" if repr(column) in lost[0].message else ""
        raise UserError(lost[0].message + otherwise)
    identity = {
        "inputs": list_digest([one.line() for one in inputs]),
        "columns": columns.identity(),
        "formats": {name: reader.model_dump(exclude_defaults=True) for name, reader in job.input.formats.items()},
        "max_row_bytes": job.input.max_row_bytes,
        "rows": sum(shard.rows for shard in shards.values()),
    }
    read = partial(read_corpus, columns=columns, readers=readers, max_row_bytes=job.input.max_row_bytes, by=by)
    return Texts(shards, identity, read, lost)


def read_corpus(
    shard: Shard, *, columns: Columns, readers: Mapping[str, Reader], max_row_bytes: int, by: str
) -> pa.Table:
    rows = read_shard(shard, columns, readers=readers, max_row_bytes=max_row_bytes)
    return as_texts(pa.array([shard.input.key] * len(rows), pa.string()), rows["_row"], rows, by, "text")


def texts_of_table(output: str, text: str, by: str) -> Texts:
    """The files of a published table that has kept a column with the texts. Raises UserError where nothing is
    published, or a column is not there.
    """
    files = tuple(result_files(output))
    schema = table_schema(output, files)
    for option, name in (("--text", text), ("--by", by)):
        if name != NO_COLUMN:
            check_column(output, schema, option, name, "keep it in the job (input.keep)")
    if not is_text(schema.field(text).type):
        raise UserError(f"{output}: --text {text}: is {schema.field(text).type}; expected strings")
    parts = {f"{number:07d}": file for number, file in enumerate(files)}
    return Texts(parts, {"files": list_digest(list(files)), "text": text}, partial(read_published, text=text, by=by))


def read_published(file: str, *, text: str, by: str) -> pa.Table:
    fs, path = filesystem(file)
    names = [name for name in ("source", "row", text, by) if name != NO_COLUMN]
    with reading(file), fs.open(path, "rb") as opened:
        rows = pq.read_table(opened, columns=list(dict.fromkeys(names)), partitioning=None)
    return as_texts(rows["source"], rows["row"], rows, by, text)


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def as_texts(source: Any, row: Any, rows: pa.Table, by: str, text: str) -> pa.Table:
    language = pa.nulls(len(rows), pa.string()) if by == NO_COLUMN else rows[by].cast(pa.string())
    texts = rows[text].cast(pa.string())
    return pa.table(
        {"source": source, "row": row.cast(pa.int64()), "language": pc.fill_null(language, ""), "text": texts}
    )


def list_digest(content: object) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()
