"""Documents drawn from any number of them, read once and never all in memory."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.train.judge.job import SampleSection

KEY, GROUP = "_key", "_group"
# For `diverse` so many times the documents asked for are drawn first, and chosen among.
POOL = 20


@dataclass(frozen=True)
class DrawnDocuments:
    """The `rows` drawn, of `seen` that could be; `skipped` ones have no text, or could not be read."""

    rows: pa.Table
    seen: int
    skipped: int


def draw_documents(tables: Iterator[pa.Table], section: SampleSection) -> DrawnDocuments:
    """Tables as `read_shard` has them, with the columns that the section names, to the rows drawn. Raises UserError
    where there is none, or a column is not of the kind that the strategy reads.
    """
    most = section.documents * (POOL if section.strategy == "diverse" else 1)
    held: pa.Table | None = None
    seen = skipped = 0
    for table in tables:
        filled = pc.not_equal(pc.utf8_trim_whitespace(table["text"]), "")
        usable = pc.fill_null(pc.and_(pc.equal(table["_code"], ""), filled), False)
        table = table.filter(usable)
        seen += len(table)
        skipped += len(usable) - len(table)
        table = table.append_column(KEY, pa.array(drawing_keys(table, section))).append_column(
            GROUP, group_keys(table, section)
        )
        held = table if held is None else pa.concat_tables([held, table], promote_options="permissive")
        if len(held) > 2 * most:
            held = evenly(held, most)
    if held is None or not len(held):
        raise UserError("input: no document with a text")
    held = evenly(held, most)
    if section.strategy == "diverse":
        held = apart(held, section)
    return DrawnDocuments(held.drop_columns([KEY, GROUP]).combine_chunks(), seen, skipped)


def drawing_keys(table: pa.Table, section: SampleSection) -> NDArray[np.float64]:
    """What rows `(N)` are drawn by, the smallest first: chance, the same for a row in each call, or their numbers."""
    if section.strategy == "uncertain":
        column = table[section.ranked_by]
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            raise UserError(f"sample.column: {section.ranked_by} holds {column.type}, expected numbers")
        numbers: NDArray[np.float64] = pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        return np.where(np.isnan(numbers), np.inf, numbers)
    if not len(table):
        return np.empty(0)
    start, source = table["_row"][0].as_py(), table["_source"][0].as_py()
    return np.random.default_rng([section.seed, zlib.crc32(source.encode()), start]).random(len(table))


def group_keys(table: pa.Table, section: SampleSection) -> pa.Array:
    """The values `(N)` of the columns that are drawn by, in one string each."""
    if not section.by:
        return pa.array([""] * len(table), pa.string())
    parts = [pc.fill_null(table[name].cast(pa.string()), "") for name in section.by]
    return pc.binary_join_element_wise(*parts, "\x1f").combine_chunks()


def evenly(rows: pa.Table, most: int) -> pa.Table:
    """At most so many rows, from each group as many as far as it has them, those with the smallest keys: the first of
    each group, then the second of each, and so on. What this leaves out of some rows, it leaves out of more.
    """
    keys = rows[KEY].to_numpy()
    codes = rows[GROUP].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((keys, codes))
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    ranks = np.empty(len(rows), np.int64)
    ranks[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return rows.take(pa.array(np.lexsort((keys, ranks))[:most]))


def apart(pool: pa.Table, section: SampleSection) -> pa.Table:
    """Of each group as many as `evenly` takes, whose vectors lie far from each other: k-means++, by scikit-learn."""
    try:
        from sklearn.cluster import kmeans_plusplus
    except ImportError:
        raise UserError("strategy: diverse needs scikit-learn: pip install 'xlmr-ray[train]'") from None
    vectors = vectors_of(pool, section.ranked_by or "")
    counts = pc.value_counts(evenly(pool, section.documents)[GROUP].combine_chunks()).to_pylist()
    names = np.array(pool[GROUP].to_pylist(), dtype=object)
    chosen: list[Any] = []
    for count in counts:
        own = np.flatnonzero(names == count["values"])
        _, found = kmeans_plusplus(vectors[own], count["counts"], random_state=section.seed)
        # Equal vectors are found twice: others make up the number.
        each = list(dict.fromkeys([*found.tolist(), *range(len(own))]))[: count["counts"]]
        chosen += own[each].tolist()
    return pool.take(pa.array(sorted(chosen)))


def vectors_of(rows: pa.Table, name: str) -> NDArray[np.float32]:
    """A column of vectors `(N, width)`, each of length 1. Raises UserError for one that holds none."""
    column = rows[name]
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise UserError(f"sample.column: {name} holds {kind}, expected vectors")
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise UserError(f"sample.column: the vectors in {name} are not of one length, or some are missing")
    flat = pc.list_flatten(column).to_numpy().astype(np.float32).reshape(len(rows), widths[0])
    found: NDArray[np.float32] = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return found
