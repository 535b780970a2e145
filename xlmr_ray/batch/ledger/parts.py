"""The plan of a run in parts, as it is made: so that shards are scored before all inputs are planned.

    _runs/<run_id>/planning/cut.json      how large the shards are; created once, before the first part
    _runs/<run_id>/planning/<part>.json   the shards of some inputs, those that come next; created once

A shard is scored when its part is there. So whoever goes on with an unfinished plan, on a larger cluster or with
another version of the package, takes the parts that are there and cuts nothing of them anew: a shard's id means the
same rows to all launches. The parts go when the plan is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.planning import DeadLetter
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import ShardTable, input_index
from xlmr_ray.batch.ledger.json_by_line import Damaged, by_line, canonical, head_of, items_of, parsed
from xlmr_ray.batch.store.base import Exists, Store

FIRST, EVERY = 1.0, 5.0  # seconds of planning in a launch's first part, and in each other one

# Plans the inputs from the one at an index on.
CutFrom = Callable[[int], Iterator[Shard | DeadLetter]]


@dataclass(frozen=True)
class ShardSize:
    """The most rows and the bytes, about, of a shard."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """The shards of some inputs, up to the one at index `until`, and those of them that cannot be read."""

    until: int
    shards: Sequence[Shard]
    dead: tuple[DeadLetter, ...]


def folder(run_id: str) -> str:
    return f"_runs/{run_id}/planning/"


def cut_key(run_id: str) -> str:
    return f"{folder(run_id)}cut.json"


def part_key(run_id: str, number: int) -> str:
    return f"{folder(run_id)}{number:07d}.json"


def part_keys(store: Store, run_id: str) -> Iterator[str]:
    """Of the parts that are there, in order."""
    keys = (entry.key for entry in store.list(folder(run_id)))
    return (key for key in keys if key != cut_key(run_id))


def is_in_parts(store: Store, run_id: str) -> bool:
    """Whether some launch has begun to plan the run in parts."""
    return store.head(cut_key(run_id)) is not None


def shard_size(store: Store, run_id: str, size: Callable[[], ShardSize]) -> ShardSize:
    """That of the run's parts; `size` is asked where there is none yet."""
    key = cut_key(run_id)
    for _ in range(2):
        try:
            found = parsed(store.get(key)[0], store.url(key))
        except FileNotFoundError:
            try:
                store.create(key, canonical(asdict(chosen := size())))
            except Exists:
                continue
            return chosen
        try:
            return ShardSize(**found)
        except TypeError:
            break
    raise Damaged(f"{store.url(key)}: is damaged: not the size of a shard")


def parts(store: Store, run_id: str, inputs: Sequence[InputFile], cut_from: CutFrom) -> Iterator[Part]:
    """All parts in order: those that are there, then the others as they are made; each is there when it is given."""
    number = at = made_until = 0
    making: Iterator[Part] | None = None
    while at < len(inputs):
        part = read_part(store, run_id, number, inputs)
        if part is None:
            if making is None or made_until != at:  # another launch made the last one
                making = made(inputs, at, cut_from)
            part = next(making)
            made_until = part.until
            if not create_part(store, run_id, number, part, inputs):
                continue
        yield part
        number, at = number + 1, part.until


def made(inputs: Sequence[InputFile], first: int, cut_from: CutFrom) -> Iterator[Part]:
    """Parts that go on from the input at index `first`."""
    indices = {one.key: index for index, one in enumerate(inputs)}

    def index_of(piece: Shard | DeadLetter) -> int:
        return indices[piece.key] if isinstance(piece, DeadLetter) else input_index(piece.id)

    shards: list[Shard] = []
    dead: list[DeadLetter] = []
    until = time.monotonic() + min(FIRST, EVERY)
    for index, pieces in groupby(cut_from(first), index_of):
        for piece in pieces:
            if isinstance(piece, DeadLetter):
                dead.append(piece)
            else:
                shards.append(piece)
        if time.monotonic() >= until and index + 1 < len(inputs):
            yield Part(index + 1, shards, tuple(dead))
            shards, dead, until = [], [], time.monotonic() + EVERY
    yield Part(len(inputs), shards, tuple(dead))


def create_part(store: Store, run_id: str, number: int, part: Part, inputs: Sequence[InputFile]) -> bool:
    """Writes the part, or says that there is one."""
    table = ShardTable(inputs)
    for shard in part.shards:
        table.add(shard)
    head = {"until": part.until, "dead": [asdict(letter) for letter in part.dead]}
    try:
        store.create(part_key(run_id, number), by_line(head, "shards", table.lines()))
    except Exists:
        return False
    return True


def read_part(store: Store, run_id: str, number: int, inputs: Sequence[InputFile]) -> Part | None:
    """None where there is none. Raises `Damaged`."""
    key = part_key(run_id, number)
    try:
        head = head_of(store, key)
        table = ShardTable(inputs)
        for line in items_of(store, key, "shards"):
            table.add_line(line)
        return Part(head["until"], table, tuple(DeadLetter(**letter) for letter in head["dead"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Damaged(f"{store.url(key)}: is damaged: a line of another form ({error})") from None
