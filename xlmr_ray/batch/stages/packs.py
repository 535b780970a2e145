"""Shards as Ray Data takes them: several in a block, which a tokenizer actor gives out one at a time.

Ray Data takes its input as objects that exist before it starts, at some milliseconds each. So many shards go in
together, packed, and the tokenizers, which read them, give out a block for each, as they come to it. Those that one
reading goes through, such as a compressed file's, are in one pack, however many they are, and are read once.
"""

import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.ledger.record import record_key
from xlmr_ray.batch.stages.block import committed_block, guarded, to_block
from xlmr_ray.batch.stages.recipe import Recipe, shard_from_json, shard_to_json
from xlmr_ray.batch.stages.suspects import restarted_actor
from xlmr_ray.batch.stages.tokenize import Tokenize

PACK = 64  # shards at most where each can be read by itself
PACKS = 16  # at least, for each tokenizer, so that all have work to the end


class TokenizeEach:
    """The tokenizer's step on each shard of a pack, one block out at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self.step = Tokenize(recipe)
        self.restarted = bool(restarted_actor())

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        texts = list(unpacked(block))
        shards = [shard_from_json(text) for text in texts]
        restarted, self.restarted = self.restarted, False
        if restarted:
            # Its pack begins anew, and what it died of may be the last shard of it.
            self.step.suspects.wary = max(self.step.suspects.wary, len(shards))
        for text, shard, self.step.until in zip(texts, shards, ends(shards), strict=True):
            block = to_block(text, {})
            yield guarded(partial(self.unless_committed, shard), block) if restarted else self.step(block)

    def unless_committed(self, shard: Shard, block: pa.Table) -> pa.Table:
        """The step's block; that of a shard with a record where it has one."""
        recipe = self.step.recipe
        there = recipe.store.head(record_key(recipe.run_id, shard.id))
        return self.step(block) if there is None else committed_block(block["shard"][0].as_py())


def ends(shards: Sequence[Shard]) -> list[int]:
    """Of each shard the `stop` of the last of those after it that are read on from it."""
    found: list[int] = []
    for shard, after in zip(reversed(shards), [None, *reversed(shards[1:])], strict=True):
        follows = after is not None and after.input == shard.input and after.start == shard.stop
        found.append(found[-1] if follows else shard.stop)
    return found[::-1]


def packs_for(shards: Iterable[Shard], count: int, tokenizers: int) -> Iterator[pa.Table]:
    """So many shards in packs for so many tokenizers."""
    size = max(1, min(PACK, count // (PACKS * tokenizers)))
    # What one tokenizer could read once is read by several where the others would have nothing to do.
    return packed(shards, size, sys.maxsize if tokenizers == 1 else max(size, -(-count // tokenizers)))


def packed(shards: Iterable[Shard], size: int, most: int = sys.maxsize) -> Iterator[pa.Table]:
    """The shards in order, `size` in a block, and up to `most` while one goes on where the last one ended."""
    pack: list[str] = []
    last: Shard | None = None
    for shard in shards:
        if len(pack) >= most or (len(pack) >= size and last is not None and not shard.goes_on(last)):
            yield _pack(pack)
            pack = []
        pack.append(shard_to_json(shard))
        last = shard
    if pack:
        yield _pack(pack)


def _pack(shards: list[str]) -> pa.Table:
    # Neighbours differ in a few digits.
    return pa.table({"shards": pa.array([zlib.compress(json.dumps(shards).encode(), 1)], pa.binary())})


def unpacked(block: pa.Table) -> Iterator[str]:
    """The shards of a block, as JSON."""
    if block.num_rows != 1:
        raise AssertionError(f"a block of {block.num_rows} packs, wanted one")
    yield from json.loads(zlib.decompress(block["shards"][0].as_py()))
