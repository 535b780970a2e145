"""A finished run as one commit of a table: the log lies beside the files that the shards wrote, `OUT/data/_delta_log`.

What the table holds is what readers of the output see, so nothing needs to be remembered: whoever comes later, the same
launch again or another driver, compares the two and commits the difference, if there is one. A commit goes through only
upon the version that it was compared with.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.lake import SINKS
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import File
from xlmr_ray.batch.ledger.snapshot import DATA, table_files
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed, UserError

TRIES = 20


def check_sink(format: str, schemas: Iterable[pa.Schema], store: Store) -> None:
    """Raises UserError where the format's library is missing, a task has a column that the format has not, or what is
    published already lies where such a table finds no files. Kept columns are seen when the run is committed.
    """
    try:
        for schema in schemas:
            SINKS[format].check(schema)
    except ImportError as error:
        raise UserError(
            f"output.table: {format} needs a package that is not installed ({error.name}): "
            f"pip install 'xlmr-ray[{SINKS[format].extra}]'"
        ) from None
    published = current(store)
    if published is not None:
        files_of(store, published.run_id)


def commit_published(store: Store, format: str) -> None:
    """Makes the table hold the published rows: one commit, or none where it does. Raises JobFailed."""
    url = store.url(DATA)
    for _ in range(TRIES):
        published = current(store)
        if published is None:
            return
        files = files_of(store, published.run_id)
        schema: pa.Schema | None = None
        if first := next(iter(files.values()), None):
            with store.open(first.key) as opened:
                schema = pq.read_schema(opened)
        done = SINKS[format].commit(url, files, schema, published.run_id)
        after = current(store)
        if done and after is not None and after.run_id == published.run_id:
            return
        time.sleep(random.uniform(0, 0.2))
    raise JobFailed(f"{url}: the {format} table could not be committed to in {TRIES} tries: others always came first")


def files_of(store: Store, run_id: str) -> dict[str, File]:
    """The files that readers see, by their path in the table's folder. Raises UserError for one that lies elsewhere."""
    files: dict[str, File] = {}
    for file in table_files(store, run_id, DATA):
        if not file.key.startswith(f"{DATA}/"):
            raise UserError(
                f"output.table: {store.url(file.key)} was made by `xlmr-ray compact`, and a table has the files "
                "of the shards: leave table out, or give another output.path"
            )
        files[file.key.removeprefix(f"{DATA}/")] = file
    return files
