"""All documents of a run as columns of numbers, ordered by `source` and `row`, in whichever order they were read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.batch.duplicates.sketch import PERMUTATIONS
from xlmr_ray.batch.duplicates.steps import Steps
from xlmr_ray.batch.ledger.in_order import in_order

PAIRS = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("language", pa.string()),
        ("method", pa.string()),
        ("similarity", pa.float32()),
        ("duplicate_of_source", pa.string()),
        ("duplicate_of_row", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Documents:
    """Of each of N, by number: its source and language as places in sorted lists, its row, its hash in two halves, and
    whether it has a text. `order (N)` is where each stands in the sketches `names`, one after another.
    """

    names: tuple[str, ...]
    order: NDArray[np.int64]
    sources: pa.Array
    source: NDArray[np.int32]
    row: NDArray[np.int64]
    languages: pa.Array
    language: NDArray[np.int32]
    hash: NDArray[np.uint64]  # (N, 2)
    has_text: NDArray[np.bool_]
    bands: tuple[IO[bytes], ...]  # keys, in the order of the sketches, on this machine's disk

    def band(self, number: int) -> NDArray[np.uint64]:
        """The keys `(N)` of a band."""
        self.bands[number].seek(0)
        keys: NDArray[np.uint64] = np.fromfile(self.bands[number], np.uint64)[self.order]
        return keys

    def __len__(self) -> int:
        return len(self.row)


def all_documents(steps: Steps, names: Iterable[str], bands: int) -> Documents:
    """Of all sketches, each of which is read once, but for the signatures."""
    names = tuple(sorted(names))
    keys = [f"band_{number}" for number in range(bands)]
    files = tuple(tempfile.TemporaryFile() for _ in keys)  # noqa: SIM115 - as long as the documents
    sources, languages = FewNames(), FewNames()
    rows, hashes, there = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)], [np.empty(0, np.bool_)]
    read = partial(steps.read, columns=["source", "row", "language", "hash", *keys])
    for table in map(pa.Table.combine_chunks, in_order(read, names)):
        sources.add(table["source"])
        languages.add(table["language"])
        rows.append(table["row"].to_numpy())
        hash = pc.fill_null(table["hash"], bytes(16)).combine_chunks()
        if len(hash):
            whole = np.frombuffer(hash.buffers()[1], np.uint64, 2 * len(hash), 16 * hash.offset)
            hashes.append(whole.reshape(-1, 2))
        there.append(table["hash"].is_valid().to_numpy())
        for key, file in zip(keys, files, strict=True):
            file.write(table[key].to_numpy())
    row, source = np.concatenate(rows), sources.places()
    order = np.lexsort((row, source))
    return Documents(
        names,
        order,
        sources.sorted(),
        source[order],
        row[order],
        languages.sorted(),
        languages.places()[order],
        np.concatenate(hashes)[order],
        np.concatenate(there)[order],
        files,
    )


class FewNames:
    """A long column of few different strings."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.columns: list[NDArray[np.int32]] = [np.empty(0, np.int32)]

    def add(self, column: pa.ChunkedArray) -> None:
        coded = column.combine_chunks().dictionary_encode()
        places = [self.known.setdefault(name, len(self.known)) for name in coded.dictionary.to_pylist()]
        self.columns.append(np.array(places, np.int32)[coded.indices.to_numpy()])

    def sorted(self) -> pa.Array:
        return pa.array(sorted(self.known), pa.string())

    def places(self) -> NDArray[np.int32]:
        """Of every string, its place in the sorted list."""
        rank = {name: place for place, name in enumerate(sorted(self.known))}
        of = np.array([rank[name] for name in self.known], np.int32)
        return of[np.concatenate(self.columns)]


def signatures_of(steps: Steps, documents: Documents, wanted: NDArray[np.int64]) -> NDArray[np.uint32]:
    """`(M, PERMUTATIONS)` of the documents of these numbers."""
    place = documents.order[wanted]
    by_place = np.argsort(place)
    whole = np.empty((len(wanted), PERMUTATIONS), np.uint32)
    start = 0
    for table in in_order(partial(steps.read, columns=["signature"]), documents.names):
        low, high = np.searchsorted(place, [start, start + len(table)], sorter=by_place)
        here = by_place[low:high]
        column = table["signature"].take(pa.array(place[here] - start)).combine_chunks()
        data = np.frombuffer(
            column.buffers()[1], np.uint32, PERMUTATIONS * len(column), 4 * PERMUTATIONS * column.offset
        )
        whole[here] = data.reshape(-1, PERMUTATIONS)
        start += len(table)
    return whole


def pairs(
    documents: Documents,
    gone: NDArray[np.int64],
    stays: NDArray[np.int64],
    method: str,
    similarity: NDArray[np.float32],
) -> pa.Table:
    """`PAIRS` of documents by number."""
    columns = [
        documents.sources.take(pa.array(documents.source[gone])),
        pa.array(documents.row[gone]),
        documents.languages.take(pa.array(documents.language[gone])),
        pa.array([method] * len(gone), pa.string()),
        pa.array(similarity, pa.float32()),
        documents.sources.take(pa.array(documents.source[stays])),
        pa.array(documents.row[stays]),
    ]
    return pa.table(columns, schema=PAIRS)
