"""What every actor of a run needs to know: small, plain, carried to them by Ray, and read without torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.stages.reuse import Before
from xlmr_ray.batch.store.base import Store
from xlmr_ray.engine.result_cache import KnownResults
from xlmr_ray.engine.settings import EngineSettings


@dataclass(frozen=True)
class TaskRecipe:
    """One task of the job: what its fields are prefixed with, the checkpoint as the job names it, the options.

    `weights`, `encoder` and `tokenizer` are digests: every machine must have the same. `stamp` is that of the files
    from which the driver took the first two. Tasks of one encoder share its pass.
    """

    task: str
    prefix: str
    model: str
    weights: str
    encoder: str
    stamp: str
    tokenizer: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """`store` carries its endpoint along, so that actors write where the driver does. `timeout` in seconds: see
    `ErrorsSection`. `kept`: types that kept columns are cast to, None where all files have the same. `pre_tokenizer`:
    see `EngineSection` of `job.py`. `threads` of the CPU for each encoder, 0 for torch's own choice, and `gpus`, or its
    part of one. `reuse`: hashes are written, and results taken out of what was `before` of an input.
    """

    run_id: str
    store: Store
    columns: Columns
    readers: Mapping[str, Reader]
    tasks: tuple[TaskRecipe, ...]
    engine: EngineSettings
    score_empty: bool
    timeout: float | None
    max_row_bytes: int
    kept: pa.Schema | None = None
    pre_tokenizer: Literal["xlm-roberta", "file"] | None = None
    threads: int = 0
    gpus: float = 0.0
    reuse: bool = False
    before: Mapping[str, Before] = field(default_factory=dict)
    known: KnownResults | None = None


def rows_of_shard(recipe: Recipe, shard: Shard, source: Source) -> pa.Table:
    """As `read_shard` says."""
    return read_shard(
        shard,
        recipe.columns,
        max_row_bytes=recipe.max_row_bytes,
        readers=recipe.readers,
        kept=recipe.kept,
        source=source,
    )


def shard_to_json(shard: Shard) -> str:
    return json.dumps(asdict(shard), ensure_ascii=False, sort_keys=True)


def shard_from_json(text: str) -> Shard:
    return shard_from_dict(json.loads(text))


def shard_from_dict(values: Mapping[str, Any]) -> Shard:
    """A shard out of the plan."""
    return Shard(**{**values, "input": InputFile(**values["input"]), "header": tuple(values["header"])})
