"""The embeddings of a published table, by blocks on Ray; a block that is done is not done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from numpy.typing import NDArray

from xlmr_ray.batch.duplicates.documents import PAIRS
from xlmr_ray.batch.duplicates.near import BLOCK_ROWS, SAMPLE, Blocks, centres, lot, near_pairs, of_length_one
from xlmr_ray.batch.duplicates.steps import Steps
from xlmr_ray.batch.duplicates.table_columns import NO_COLUMN, check_column, table_schema
from xlmr_ray.batch.ledger.results import read_results, result_files
from xlmr_ray.errors import UserError

Removed = Mapping[str, NDArray[np.int64]]  # by source, the rows that other methods have removed, ascending
COUNTS = pa.schema([("language", pa.string()), ("documents", pa.int64())])


@dataclass(frozen=True)
class VectorColumn:
    """A column of a published table."""

    output: str
    files: tuple[str, ...]
    column: str
    by: str

    def rows(self, removed: ray.ObjectRef) -> ray.data.Dataset:
        """`source, row, language, vector` of what is left."""
        names = ["source", "row", self.column, *([self.by] if self.by != NO_COLUMN else [])]
        rows = read_results(self.output).select_columns(list(dict.fromkeys(names)))
        return rows.map_batches(left_of, fn_args=(removed, self.column, self.by), batch_format="pyarrow")


def embeddings_of(output: str, column: str, by: str) -> VectorColumn:
    """Raises UserError where nothing is published, or the table has no such column of vectors."""
    files = tuple(result_files(output))
    schema = table_schema(output, files)
    otherwise = "a job with the task embedding makes one, or leave embedding out of --methods"
    check_column(output, schema, "--vectors", column, otherwise)
    kind = schema.field(column).type
    kind = getattr(kind, "storage_type", kind)
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
        raise UserError(
            f"{output}: --vectors {column}: is {kind}; expected vectors of floats of one length; {otherwise}"
        )
    if by != NO_COLUMN:
        check_column(output, schema, "--by", by, "keep it in the job (input.keep), or take --by none")
    return VectorColumn(output, files, column, by)


def near_duplicates(given: VectorColumn, steps: Steps, threshold: float, removed: Removed) -> tuple[pa.Table, pa.Table]:
    """`PAIRS` of all blocks, and how many documents of each language were compared (`COUNTS`)."""
    rows = given.rows(ray.put(dict(removed)))
    if "counts" not in steps.there("counts"):
        steps.write("counts", counts(rows))
    counted = steps.read("counts")
    if "near" not in steps.there("near"):
        if "centres" not in steps.there("centres"):
            steps.write("centres", all_centres(rows, counted))
        done = [int(name.partition("_")[2]) for name in sorted(steps.there("block_"))]
        cut = blocks(counted, steps.read("centres"))
        if cut.count > len(done):
            how = ray.put((cut, done))
            found = rows.map_batches(in_blocks, fn_args=(how,), batch_format="pyarrow")
            # Ray makes 200 partitions of ten rows, too, a task each.
            grouped = found.groupby("block", num_partitions=min(MOST_PARTITIONS, cut.count - len(done)))
            grouped.map_groups(compare_block, fn_args=(steps, threshold), batch_format="pyarrow").materialize()
        parts = [steps.read(name) for name in sorted(steps.there("block_"))]
        steps.write("near", pa.concat_tables([PAIRS.empty_table(), *parts]).sort_by(ORDER))
    return steps.read("near"), counted


MOST_PARTITIONS = 200
ORDER = [("source", "ascending"), ("row", "ascending")]


def left_of(batch: pa.Table, others: ray.ObjectRef, column: str, by: str) -> pa.Table:
    """What `others`, `Removed`, leave of a batch."""
    removed: Removed = ray.get(others)
    sources = batch["source"].combine_chunks().dictionary_encode()
    rows, places = batch["row"].to_numpy(), sources.indices.to_numpy()
    stays = np.ones(len(rows), np.bool_)
    for place, source in enumerate(sources.dictionary.to_pylist()):
        if source in removed:
            here = places == place
            stays[here] = ~np.isin(rows[here], removed[source])
    language = pa.nulls(len(rows), pa.string()) if by == NO_COLUMN else batch[by].cast(pa.string())
    columns = {"source": batch["source"], "row": batch["row"], "language": pc.fill_null(language, "")}
    return pa.table({**columns, "vector": batch[column]}).filter(pa.array(stays))


def counts(rows: ray.data.Dataset) -> pa.Table:
    """`COUNTS`, by language."""

    def count(batch: pa.Table) -> pa.Table:
        return batch.group_by("language", use_threads=False).aggregate([([], "count_all")]).rename_columns(COUNTS.names)

    found = rows.map_batches(count, batch_format="pyarrow").iter_batches(batch_format="pyarrow", batch_size=None)
    tables = [table.select(COUNTS.names).cast(COUNTS) for table in found if table.num_rows]
    every = pa.concat_tables([COUNTS.empty_table(), *tables])
    summed = every.group_by("language", use_threads=False).aggregate([("documents", "sum")])
    return summed.rename_columns(COUNTS.names).sort_by("language")


def all_centres(rows: ray.data.Dataset, counted: pa.Table) -> pa.Table:
    """`language, centre`: of the languages that are cut, the centre of each block."""
    large = {one["language"]: one["documents"] for one in counted.to_pylist() if one["documents"] > BLOCK_ROWS}
    names: list[str] = []
    found: list[list[float]] = []
    if large:

        def drawn(batch: pa.Table) -> pa.Table:
            keys = zip(*(batch[name].to_pylist() for name in ("source", "row", "language")), strict=True)
            taken = [
                language in large and lot(source, np.array([row]))[0] < SAMPLE / large[language]
                for source, row, language in keys
            ]
            return batch.filter(pa.array(taken, pa.bool_()))

        batches = rows.map_batches(drawn, batch_format="pyarrow").iter_batches(batch_format="pyarrow", batch_size=None)
        sample = pa.concat_tables([batch for batch in batches if batch.num_rows]).sort_by(ORDER)
        for language, count in sorted(large.items()):
            part = of_length_one(sample.filter(pc.equal(sample["language"], language))["vector"])
            middles = centres(part, -(-count // BLOCK_ROWS))
            names += [language] * len(middles)
            found += middles.tolist()
    return pa.table([pa.array(names, pa.string()), pa.array(found, pa.list_(pa.float32()))], ["language", "centre"])


def blocks(counted: pa.Table, middles: pa.Table) -> Blocks:
    first, number, of = {}, 0, {}
    for language in counted["language"].to_pylist():
        mine = middles.filter(pc.equal(middles["language"], language))
        first[language] = number
        number += max(1, len(mine))
        if len(mine):
            of[language] = np.array(mine["centre"].to_pylist(), np.float32)
    return Blocks(first, of)


def in_blocks(batch: pa.Table, how: ray.ObjectRef) -> pa.Table:
    """Every row with its `block`, but for the blocks that are done; `how` is `Blocks` and these."""
    cut, done = ray.get(how)
    rows, languages = of_length_one(batch["vector"]), np.array(batch["language"].to_pylist(), object)
    block = np.zeros(len(rows), np.int64)
    for language in set(languages.tolist()):
        here = languages == language
        block[here] = cut.of(language, rows[here])
    left = ~np.isin(block, np.array(done, np.int64))
    return batch.append_column("block", pa.array(block)).filter(pa.array(left))


def compare_block(group: pa.Table, steps: Steps, threshold: float) -> pa.Table:
    number = group["block"][0].as_py()
    steps.write(f"block_{number:08d}", near_pairs(group, threshold))
    return pa.table({"block": [number]})
