"""What a job has published, and how it differs from what a clean run published."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.manifest import manifest_files
from xlmr_ray.batch.ledger.merged import merged_table_key
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.snapshot import DATA, ERRORS, table_files
from xlmr_ray.batch.store.base import Store

ORDER = [("source", "ascending"), ("row", "ascending")]


@dataclass(frozen=True)
class Rows:
    """Published rows and error rows, each sorted by source and row."""

    output: pa.Table
    errors: pa.Table

    @property
    def places(self) -> Counter[tuple[str, int]]:
        """How often each input row is there, as an output row or an error row."""
        tables = (self.output, self.errors)
        return Counter(
            place
            for table in tables
            if table.num_rows
            for place in zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True)
        )

    @property
    def bytes(self) -> bytes:
        """The same for equal rows, whatever files and chunks they came in."""
        sink = pa.BufferOutputStream()
        for table in (self.output, self.errors):
            whole = table.combine_chunks()
            with pa.ipc.new_stream(sink, whole.schema) as writer:
                writer.write_table(whole)
        return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Difference:
    """Input rows that are not among the published ones, that are there more than once, and whether all bytes agree."""

    lost: int
    twice: int
    same: bool


def published(store: Store) -> Rows:
    """Raises LookupError where nothing is published."""
    found = current(store)
    if found is None:
        raise LookupError(f"{store.url('')}: nothing is published")
    return rows_of(store, found.run_id)


def rows_of(store: Store, run_id: str) -> Rows:
    """Of a run's committed files, or of those that they were merged into."""
    if store.head(merged_table_key(run_id)) is None:
        of_kind: dict[str, list[str]] = {"data": [], "errors": []}
        for file in manifest_files(store, run_id):
            of_kind[file.key.partition("/")[0]].append(file.key)
        keys = list(of_kind.values())
    else:
        keys = [[file.key for file in table_files(store, run_id, kind)] for kind in (DATA, ERRORS)]
    tables = [[pq.read_table(pa.BufferReader(store.get(key)[0])) for key in some] for some in keys]
    output, errors = (pa.concat_tables(some).sort_by(ORDER) if some else pa.table({}) for some in tables)
    return Rows(output, errors)


def difference(clean: Rows, found: Rows) -> Difference:
    wanted, got = clean.places, found.places
    return Difference(
        lost=sum((wanted - got).values()),
        twice=sum(count - 1 for count in got.values() if count > 1),
        same=clean.bytes == found.bytes,
    )
