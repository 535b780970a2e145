"""Finds the documents that repeat another one, by up to three methods, each among what those before have left.

OUT/<run>/made_from.json        what decides the run, whose name is a hash of it
OUT/<run>/steps/…               what is done so far: a launch that was killed goes on; removed at the end
OUT/<run>/duplicates.parquet    source, row, method, similarity, duplicate_of_source, duplicate_of_row
OUT/<run>/report.json           created last: a run that has it is finished
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from xlmr_ray.batch.duplicates.documents import PAIRS
from xlmr_ray.batch.duplicates.report import by_source, of_method
from xlmr_ray.batch.duplicates.same_texts import text_duplicates
from xlmr_ray.batch.duplicates.steps import Each, Steps, in_one_line, parquet
from xlmr_ray.batch.duplicates.texts import Texts, list_digest
from xlmr_ray.batch.duplicates.vectors import ORDER, VectorColumn, near_duplicates
from xlmr_ray.batch.identity import run_id
from xlmr_ray.batch.ledger.json_by_line import canonical, parsed
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import UserError

RULES = 1  # raised by one whenever the same documents give other duplicates
METHODS = ("exact", "minhash", "embedding")
OUTPUT = ["source", "row", "method", "similarity", "duplicate_of_source", "duplicate_of_row"]


@dataclass(frozen=True)
class Search:
    """`methods` of METHODS; `jaccard` and `cosine` are the least similarities of a pair. `embedding` needs the latter:
    which cosine says the same is the checkpoint's.
    """

    methods: tuple[str, ...]
    jaccard: float = 0.8
    cosine: float | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"--methods: {name!r} is no method; expected some of {', '.join(METHODS)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UserError(f"--methods: expected some of {', '.join(METHODS)}, each once")
        if "embedding" in self.methods and self.cosine is None:
            raise UserError(
                "--methods: embedding needs --cosine, the least one of two documents that are the same: it differs by "
                "checkpoint, so try one, and look at the report's counts by language and at its examples"
            )
        for option, value in (("--jaccard", self.jaccard), ("--cosine", self.cosine)):
            if value is not None and not 0 < value <= 1:
                raise UserError(f"{option}: {value}; expected more than 0, and at most 1")

    @property
    def of_texts(self) -> tuple[str, ...]:
        return tuple(name for name in METHODS[:2] if name in self.methods)

    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rules": RULES, "methods": sorted(self.methods)}
        if "minhash" in self.methods:
            found |= {"jaccard": self.jaccard, "datasketch": version("datasketch")}
        if "embedding" in self.methods:
            found |= {"cosine": self.cosine}
        return found


def deduplicate(
    store: Store,
    wanted: Search,
    *,
    texts: Texts | None = None,
    vectors: VectorColumn | None = None,
    by: str,
    each: Each,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[str, dict[str, Any]]:
    """The run's name and its report; of a finished run, only these. `texts` for exact and minhash, `vectors` for
    embedding, which needs Ray. `each` spreads the work on texts, `tell` gets a line now and then.
    """
    made_from = {**wanted.identity(), "by": by}
    if texts is not None:
        made_from["texts"] = texts.identity
    if vectors is not None:
        made_from["vectors"] = {"files": list_digest(list(vectors.files)), "column": vectors.column}
    run = run_id(made_from)
    steps = Steps(store, f"{run}/steps/")
    if report_of(store, run) is None:
        create(store, f"{run}/made_from.json", canonical(made_from))
        try:
            with in_one_line():
                table, numbers = found(steps, wanted, texts, vectors, each, tell)
            create(store, f"{run}/duplicates.parquet", parquet(table))
            create(store, f"{run}/report.json", canonical({"run": run, "made_from": made_from, **numbers}))
        except FileNotFoundError:  # another launch has finished meanwhile, and has removed the steps?
            if report_of(store, run) is None:
                raise
    steps.remove()
    report = report_of(store, run)
    assert report is not None
    return run, report


def report_of(store: Store, run: str) -> dict[str, Any] | None:
    try:
        return parsed(store.get(f"{run}/report.json")[0], store.url(f"{run}/report.json"))
    except FileNotFoundError:
        return None


def create(store: Store, key: str, data: bytes) -> None:
    with contextlib.suppress(Exists):  # with the same bytes
        store.create(key, data)


def found(
    steps: Steps,
    wanted: Search,
    texts: Texts | None,
    vectors: VectorColumn | None,
    each: Each,
    tell: Callable[[str], None],
) -> tuple[pa.Table, dict[str, Any]]:
    """Does what is left of the steps. Returns the table and the report's numbers."""
    methods: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    removed = PAIRS.empty_table()
    if texts is not None:
        jaccard = wanted.jaccard if "minhash" in wanted.methods else None
        removed, numbers = text_duplicates(
            steps, texts, exact="exact" in wanted.methods, jaccard=jaccard, each=each, tell=tell
        )
        methods = numbers.pop("methods")
    if vectors is not None and wanted.cosine is not None:
        near, compared = near_duplicates(vectors, steps, wanted.cosine, by_source(removed))
        methods["embedding"] = of_method(dict(zip(*compared.to_pydict().values(), strict=True)), near)
        removed = followed(removed, near)
    return removed.sort_by(ORDER).select(OUTPUT), {**numbers, "methods": methods, "removed": len(removed)}


def followed(removed: pa.Table, near: pa.Table) -> pa.Table:
    """Both, where what repeats a document that `near` removes repeats the one that stays for it."""
    keys = ["duplicate_of_source", "duplicate_of_row"]
    moved = pa.table([near[name] for name in ("source", "row", *keys)], [*keys, "of_source", "of_row"])
    joined = removed.join(moved, keys, join_type="left outer", use_threads=False)
    for name, new in zip(keys, ("of_source", "of_row"), strict=True):
        place = joined.column_names.index(name)
        joined = joined.set_column(place, name, pc.coalesce(joined[new], joined[name]))
    return pa.concat_tables([joined.select(PAIRS.names).cast(PAIRS), near])
