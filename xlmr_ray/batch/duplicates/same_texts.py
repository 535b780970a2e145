"""The documents whose texts are the same, or nearly: sketches of all parts, then groups of all documents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.batch.duplicates.documents import Documents, all_documents, pairs, signatures_of
from xlmr_ray.batch.duplicates.groups import candidates, firsts_of_equal, firsts_of_near
from xlmr_ray.batch.duplicates.report import of_method
from xlmr_ray.batch.duplicates.sketch import PERMUTATIONS, bands_and_rows, sketch
from xlmr_ray.batch.duplicates.steps import Each, Steps
from xlmr_ray.batch.duplicates.texts import Texts
from xlmr_ray.text.plural import plural


def text_duplicates(
    steps: Steps,
    texts: Texts,
    *,
    exact: bool,
    jaccard: float | None,
    each: Each,
    tell: Callable[[str], None],
) -> tuple[pa.Table, dict[str, Any]]:
    """`PAIRS` of the methods exact and minhash (with a least similarity `jaccard`), and their part of the report."""
    cut = None if jaccard is None else bands_and_rows(jaccard)
    parts = {f"sketch_{name}": part for name, part in texts.parts.items()}
    there = steps.there("sketch_")
    if there:
        tell(f"goes on: {len(there):,} of {plural(len(parts), 'part')} were read before")
    left = [item for item in parts.items() if item[0] not in there]
    each(partial(sketch_part, steps=steps, read=texts.read, cut=cut), left)
    tell(f"{plural(len(parts), 'part')} read")
    all_of = all_documents(steps, parts, cut[0] if cut else 0)
    first = np.arange(len(all_of))
    methods: dict[str, Any] = {}
    tables = []
    if exact:
        first = firsts_of_equal(all_of.hash, all_of.has_text)
        gone = np.flatnonzero(first != np.arange(len(first)))
        tables.append(pairs(all_of, gone, first[gone], "exact", np.ones(len(gone), np.float32)))
        methods["exact"] = of_method(by_language(all_of, all_of.has_text), tables[0])
    if jaccard is not None and cut is not None:
        single = np.flatnonzero(all_of.has_text & (first == np.arange(len(first))))
        near, of, similarity = near_texts(steps, all_of, single, cut[0], jaccard, tell)
        gone = np.flatnonzero(near != of)
        table = pairs(all_of, near[gone], of[gone], "minhash", similarity[gone])
        methods["minhash"] = of_method(by_language(all_of, np.isin(np.arange(len(first)), single)), table)
        moved = np.arange(len(first))
        moved[near] = of
        if tables:  # what repeats a document that has gone repeats the one that stays for it
            gone = np.flatnonzero(first != np.arange(len(first)))
            tables = [pairs(all_of, gone, moved[first[gone]], "exact", np.ones(len(gone), np.float32))]
        tables.append(table)
    report = {
        "documents": len(all_of),
        "without_text": int((~all_of.has_text).sum()),
        "files_not_read": [{"file": one.key, "code": one.code, "rows": one.rows} for one in texts.lost],
        "methods": methods,
    }
    return pa.concat_tables(tables), report


def sketch_part(
    item: tuple[str, Any], steps: Steps, read: Callable[[Any], pa.Table], cut: tuple[int, int] | None
) -> None:
    name, part = item
    steps.write(name, sketch(read(part), cut))


def near_texts(
    steps: Steps,
    all_of: Documents,
    left: NDArray[np.int64],
    bands: int,
    jaccard: float,
    tell: Callable[[str], None],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Documents that share a band with another one, the first of each one's group, and the estimated Jaccard similarity
    to that.
    """
    some = candidates(map(all_of.band, range(bands)), left)
    tell(f"{plural(len(some), 'document')} to compare")
    if not len(some):
        return some, some, np.empty(0, np.float32)
    signatures = signatures_of(steps, all_of, some)
    least = int(np.ceil(jaccard * PERMUTATIONS - 1e-9))
    of = firsts_of_near(map(all_of.band, range(bands)), some, signatures, least)
    place = np.searchsorted(some, of)
    agree = [
        (signatures[start : start + 65536] == signatures[place[start : start + 65536]]).mean(1)
        for start in range(0, len(some), 65536)
    ]
    return some, of, np.concatenate(agree).astype(np.float32)


def by_language(all_of: Documents, taken: NDArray[np.bool_]) -> dict[str, int]:
    counted = np.bincount(all_of.language[taken], minlength=len(all_of.languages))
    return {name: int(count) for name, count in zip(all_of.languages.to_pylist(), counted, strict=True) if count}
