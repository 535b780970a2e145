"""A shard on its way through Ray Data: one block of one row, its tables inside as Arrow streams.

Ray drops empty blocks, and unifies and may split or join those it carries; a shard may be empty, has its own types,
and must stay whole. Tables in a cell are not touched, and reading them back copies nothing.
"""

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.stages.bisect import is_panic
from xlmr_ray.errors import JobFailed, UserError

FAILURE = "failure"
COMMITTED = "committed"


def to_block(shard: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """One row: the shard as JSON, and each table as an Arrow stream."""
    cells = {"shard": pa.array([shard], pa.string())}
    for name, table in tables.items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        stream = sink.getvalue()
        offsets = pa.py_buffer(pa.array([0, stream.size], pa.int64()).buffers()[1])
        cells[name] = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, stream])
    return pa.table(cells)


def committed_block(shard: str) -> pa.Table:
    """In the place of a shard that has a record: it goes through the steps untouched."""
    return pa.table({"shard": [shard], COMMITTED: [True]})


def from_block(block: pa.Table) -> tuple[str, dict[str, pa.Table]]:
    """The shard's JSON and its tables. A block of another length is a defect: shards must not be split or joined."""
    if block.num_rows != 1:
        raise AssertionError(f"a block of {block.num_rows} rows, a shard is one")
    tables = {name: pa.ipc.open_stream(block[name][0].as_buffer()).read_all() for name in block.column_names[1:]}
    return block["shard"][0].as_py(), tables


def guarded(step: Callable[[pa.Table], pa.Table], block: pa.Table) -> pa.Table:
    """The step's block, or one that says why there is none, which later steps pass on to the driver.

    Ray Data would carry the exception, but as a text of many lines with its type lost; and the user is owed one line.
    """
    if FAILURE in block.column_names:
        return block
    try:
        return step(block)
    except (UserError, JobFailed) as error:
        reason, users, changed = str(error), isinstance(error, UserError), isinstance(error, InputChanged)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"the pipeline failed: {described_error(error)} ({where.filename}:{where.lineno})"
        users = changed = False
    return pa.table({"shard": block["shard"], FAILURE: [reason], "users": [users], "changed": [changed]})


def described_error(error: BaseException) -> str:
    """The kind of an error, and its words where it is of the system, a library that is missing, or torch: other errors
    may quote a document.
    """
    of_torch = isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] in ("builtins", "torch")
    if of_torch or isinstance(error, OSError | ImportError | MemoryError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return type(error).__name__


def raise_failure(row: Mapping[str, Any]) -> None:
    """Raises, in the driver, what `guarded` carried in this row: UserError, InputChanged or JobFailed, as it was."""
    if FAILURE in row:
        raise (UserError if row["users"] else InputChanged if row["changed"] else JobFailed)(row[FAILURE])
