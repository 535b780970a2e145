"""A finished run as one commit of a table that refers to the files that the shards wrote: of Delta, whose log lies
beside them, `OUT/data/_delta_log`, or of Iceberg, whose metadata lie in `OUT/iceberg/metadata`.

What the table holds is what readers of the output see, so nothing needs to be remembered: whoever comes later, the same
launch again or another driver, compares the two and commits the difference, if there is one. A commit goes through only
upon the version that it was compared with, which was read before the pointer that says what is published.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.lake import SINKS
from xlmr_ray.batch.lake.table import PublishedRows
from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import File
from xlmr_ray.batch.ledger.snapshot import DATA, table_files
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed, UserError

TRIES = 20


def check_sink(target: TableTarget, schemas: Iterable[pa.Schema], store: Store) -> None:
    """Raises UserError where the format's library is missing, a task has a column that the format has not, or what is
    published already lies where such a table finds no files. Kept columns are seen when the run is committed.
    """
    sink = SINKS[target.format]
    try:
        sink.check(store, target, schemas)
    except ImportError as error:
        raise UserError(
            f"output.table: {target.format} needs a package that is not installed ({error.name}): "
            f"pip install 'xlmr-ray[{sink.extra}]'"
        ) from None
    if current(store) is not None:
        published_rows(store)


def commit_published(store: Store, target: TableTarget) -> None:
    """Makes the table hold the published rows: one commit, or none where it does. Raises JobFailed."""
    if current(store) is None:
        return
    for _ in range(TRIES):
        run_id = SINKS[target.format].commit(store, target, partial(published_rows, store))
        after = current(store)
        if after is not None and after.run_id == run_id:
            return
        time.sleep(random.uniform(0, 0.2))
    raise JobFailed(
        f"{store.url('')}: the {target.format} table could not be committed to in {TRIES} tries: others always came "
        "first"
    )


def published_rows(store: Store) -> PublishedRows:
    """What readers see now. Raises UserError for files that are not those of shards."""
    published = current(store)
    if published is None:
        raise JobFailed(f"{store.url('')}: nothing is published any more; run the job again")
    files: dict[str, File] = {}
    for file in table_files(store, published.run_id, DATA):
        if not file.key.startswith(f"{DATA}/"):
            raise UserError(
                f"output.table: {store.url(file.key)} was merged from others (`xlmr-ray compact`, output.compact), "
                "and a table has the files of the shards: leave table out, or give another output.path"
            )
        files[file.key] = file
    schema: pa.Schema | None = None
    if first := next(iter(files), None):
        with store.open(first) as opened:
            schema = pq.read_schema(opened)
    return PublishedRows(published.run_id, files, schema)


def table_of(store: Store) -> str | None:
    """The format of the table that the output has; None where it has none."""
    return next((format for format, sink in SINKS.items() if sink.names_files(store)), None)
