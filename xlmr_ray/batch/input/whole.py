"""Inputs by the readers of a job, without one: whole in memory, as labelled sets are, which are small, or in turn."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.errors import UserError

SHARD_ROWS = 65536


def iter_whole(path: Sequence[str], *, format: str, text: dict[str, str], keep: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of all files, in order and in tables of some thousands: a column for each role of `text` (role -> column
    of the input), the columns to `keep`, and as in `read_shard` `_row`, `_code` and `_message`; `_source` is the file.

    Raises UserError for a file that cannot be read, as for a column that is not there.
    """
    columns = Columns(text=text, keep=tuple(dict.fromkeys(keep)))
    inputs = find_inputs(path, format=format, columns=columns).inputs
    for shard in plan_shards(inputs, shard_rows=SHARD_ROWS, columns=columns):
        if isinstance(shard, DeadLetter):
            raise UserError(shard.message)
        table = read_shard(shard, columns)
        table = table.append_column("_source", pa.array([shard.input.key] * len(table), pa.string()))
        yield table.set_column(table.column_names.index("_message"), "_message", pc.fill_null(table["_message"], ""))


def read_whole(path: Sequence[str], *, format: str, text: dict[str, str], keep: Sequence[str]) -> pa.Table:
    """The same in one table. Raises UserError, where there are no rows, too."""
    tables = list(iter_whole(path, format=format, text=text, keep=keep))
    if not tables:
        raise UserError(f"{', '.join(path)}: no rows")
    return pa.concat_tables(tables).combine_chunks()
