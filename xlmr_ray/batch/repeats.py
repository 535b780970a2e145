"""How many rows of a run have a text that is in an earlier shard, and whether results are kept for them.

Estimated before the encoders start: the texts of a sample of shards are hashed, all of them where the run is small. A
row counts where its text is in another of these shards before, and the results in between would not have pushed it out
(an LRU of so many bytes is gone through). Of a sample of n rows that is the least there is: the encoders see more rows
before each. If every text came twice at most, in any order, there were as many times more as n goes into the rows that
are kept, or into all of them: that is the most. Both with a standard error of one over the root of the rows that count.
Whether keeping pays is decided by the most, since it costs next to nothing where there is less.
"""

import contextlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.readers.raw import BadFile, Source
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import ROWS, ShardTable
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.shard_rows import result_bytes
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import Recipe, rows_of_shard
from xlmr_ray.batch.stages.reuse import hashes_of
from xlmr_ray.batch.stages.rows import fail_empty
from xlmr_ray.engine.result_cache import ENTRY, ResultCache
from xlmr_ray.tasks.task import EncoderTask

MOST_BYTES = 1 << 30
OF_MEMORY = 16  # of a machine's memory one part in so many, at most
ACTOR_BYTES = 150 << 20  # of the process beside the results
SAMPLE_ROWS, SAMPLE_SHARDS = 1 << 16, 256
FURTHEST = 64 << 20  # bytes of a compressed file that may have to be read before a shard of the sample
PAYS = 0.05


@dataclass(frozen=True)
class RepeatShare:
    """Of `rows` of a sample, `own` have a text that is earlier in their shard, which is computed once in any case, and
    `again` others one that is in a shard before. `whole`: they are all rows. `window`: as many rows more as the
    encoders see before each, at most.
    """

    rows: int
    own: int
    again: int
    whole: bool
    window: float = 1.0

    @property
    def least(self) -> float:
        return self.again / max(1, self.rows)

    @property
    def most(self) -> float:
        return min(1.0 - self.own / max(1, self.rows), self.least * self.window)

    @property
    def error(self) -> float:
        """Of the least, one standard deviation."""
        return 0.0 if self.whole else math.sqrt(self.again) / max(1, self.rows)

    def __str__(self) -> str:
        of = f"{self.rows:,} documents" + ("" if self.whole else " of a sample")
        text = (
            f"{self.own / max(1, self.rows):.1%} of {of} have the text of one before in their shard, {self.least:.1%}"
        )
        if not self.whole:
            text += f" (± {self.error:.1%}, in all of the run up to {self.most:.0%})"
        return f"{text} of one in a shard before"


@dataclass(frozen=True)
class Keeping:
    """What is known of a run's repeats, None where nobody looked, and the bytes of results that are kept for them, 0
    for none.
    """

    found: RepeatShare | None = None
    bytes: int = 0

    def __str__(self) -> str:
        kept = (
            f"results are kept for these, in {self.bytes / 2**20:,.0f} MiB at most" if self.bytes else "none are kept"
        )
        return f"{self.found}; {kept}" if self.found else kept

    @property
    def spared(self) -> float:
        """The least share of the rows that is not computed, as one before is."""
        found = self.found
        return 0.0 if found is None else (found.own + (found.again if self.bytes else 0)) / max(1, found.rows)

    @property
    def memory(self) -> int:
        """Bytes of the process that keeps them."""
        return self.bytes and self.bytes + ACTOR_BYTES


def keeping(job: Job, recipe: Recipe, shards: ShardTable, left: NDArray[np.int64], there: Resources) -> Keeping:
    """For a launch that scores the shards that are `left`, by index."""
    asked = job.cluster.repeats_bytes
    size = result_size(recipe)
    if asked == 0 or not size or len(left) < 2:
        return Keeping()
    most = min(MOST_BYTES, int(there.memory / OF_MEMORY / max(1, len(there.cpus)))) if asked == "auto" else asked
    found = repeat_share(recipe, shards, left, most, size)
    return Keeping(found, most if asked != "auto" or found.most >= PAYS else 0)


def result_size(recipe: Recipe) -> int:
    """Bytes of the results of a text that is as long as the model takes; 0 where none is of an encoder."""
    total = 0
    for one in recipe.tasks:
        task = bound_task(one)
        if isinstance(task, EncoderTask):
            total += ENTRY + (result_bytes(one) or 4 * task.result_width)
    return total


def repeat_share(recipe: Recipe, shards: ShardTable, left: NDArray[np.int64], most: int, size: int) -> RepeatShare:
    chosen = looked_into(shards.columns[left, ROWS])
    seen: ResultCache[bool] = ResultCache(most)
    rows = own = again = 0
    source: Source | None = None
    for shard in (shards[int(left[at])] for at in chosen):
        if shard.input.compression and shard.start > FURTHEST:
            continue
        if source is None or source.input != shard.input:
            source = Source(shard.input)
        with contextlib.suppress(BadFile, InputChanged, OSError):  # the run itself tells of it
            hashes = hashes_in(recipe, shard, source)
            texts = dict.fromkeys(hashes)
            rows, own = rows + len(hashes), own + len(hashes) - len(texts)
            for one in texts:
                if seen.find(one) is None:
                    seen.keep(one, True, size - ENTRY)
                else:
                    again += 1
    total = int(shards.columns[left, ROWS].sum())
    window = min(total, most // size) / max(1, rows)
    return RepeatShare(rows, own, again, rows >= total, max(1.0, window))


def hashes_in(recipe: Recipe, shard: Shard, source: Source) -> list[bytes]:
    read = rows_of_shard(recipe, shard, source)
    roles = list(recipe.columns.text)
    hashes: list[bytes] = hashes_of(read if recipe.score_empty else fail_empty(read, roles), roles)["hash"].to_pylist()
    return hashes


def looked_into(rows: NDArray[np.int64]) -> list[int]:
    """Of shards with so many `rows (N)`, which to look into: all, or pairs of neighbours from places spread evenly,
    since what repeats is often near.
    """
    count = len(rows)
    if count <= SAMPLE_SHARDS and rows.sum() <= SAMPLE_ROWS:
        return list(range(count))
    places = max(2, min(SAMPLE_SHARDS, int(SAMPLE_ROWS / max(1.0, rows.mean()))) // 2)
    firsts = np.linspace(0, max(0, count - 2), places).round().astype(int)
    return sorted({int(at) for first in firsts for at in (first, min(first + 1, count - 1))})
