"""From the rows of a shard and the tasks' results to output rows and error rows: every row ends as exactly one of
them.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA


def good_rows(rows: pa.Table) -> NDArray[np.int64]:
    """Indices of the rows of a shard that have no error."""
    indices: NDArray[np.int64] = np.flatnonzero(pc.equal(rows["_code"], "").to_numpy())
    return indices


def fail_rows(rows: pa.Table, failures: dict[int, tuple[str, str]]) -> pa.Table:
    """The rows with some made error rows: index -> (code, message)."""
    if not failures:
        return rows
    for column, part in (("_code", 0), ("_message", 1)):
        values = rows[column].to_pylist()
        for index, failure in failures.items():
            values[index] = failure[part]
        rows = rows.set_column(rows.column_names.index(column), column, pa.array(values, pa.string()))
    return rows


def fail_all(rows: pa.Table, failure: tuple[str, str]) -> pa.Table:
    """The good ones of the rows made error rows, too."""
    return fail_rows(rows, dict.fromkeys(good_rows(rows).tolist(), failure))


def fail_empty(rows: pa.Table, roles: Sequence[str]) -> pa.Table:
    """The rows with those made error rows whose text, or one of whose texts, is empty."""
    failures = {}
    for role in roles:
        for index in np.flatnonzero(pc.equal(rows[role], "").fill_null(False).to_numpy()).tolist():
            failures[index] = (codes.EMPTY_TEXT, f"the {role.replace('_', ' ')} is empty")
    return fail_rows(rows, failures)


def error_table(rows: pa.Table, source: str) -> pa.Table:
    """The error rows, in `ERROR_SCHEMA`."""
    bad = rows.filter(pc.not_equal(rows["_code"], ""))
    sources = pa.repeat(pa.scalar(source, pa.string()), bad.num_rows)
    return pa.table([sources, bad["_row"], bad["id"], bad["_code"], bad["_message"]], schema=ERROR_SCHEMA)


def output_table(rows: pa.Table, source: str, columns: Columns, results: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """The output rows: where they come from, the id, the kept columns, whether the text had to be changed, the tasks'
    fields.

    `rows` are the good ones; `results` are the tasks' tables for them, each with what to put before its names.
    """
    out = {"source": pa.repeat(pa.scalar(source, pa.string()), rows.num_rows), "row": rows["_row"], "id": rows["id"]}
    out |= {name: rows[name] for name in columns.keep}
    out["text_changed"] = rows["_changed"]
    for prefix, table in results:
        for name in table.column_names:
            if prefix + name in out:
                raise AssertionError(f"two columns named {prefix + name!r}")
            out[prefix + name] = table[name]
    return pa.table(out)
