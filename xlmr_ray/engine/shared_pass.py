"""Several tasks' encoded tables through one engine: every sequence that two tasks share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.engine.engine import Engine, Results, ragged
from xlmr_ray.engine.units import Units
from xlmr_ray.tasks.encoded import targets_of


@dataclass(frozen=True)
class TaskResults:
    """One task's results `(R, ...)`, a row a unit, and its sequences that failed: number -> (code, message)."""

    raw: NDArray[np.float32]
    failed: dict[int, tuple[str, str]]


def one_pass(engine: Engine, encoded: Sequence[pa.Table]) -> list[TaskResults]:
    """The results of each of the engine's tasks for its encoded table.

    Tables whose ids are the same go through the encoder together. Of others, which cut or windowed some documents in
    another way, each distinct sequence goes through once. A task with targets of its own, over other sequences than
    its neighbours', has a pass of its own: its head is the dear part.
    """
    out: dict[int, TaskResults] = {}
    groups: list[list[int]] = []
    for place, table in enumerate(encoded):
        for group in groups:
            if agree([encoded[other] for other in group], table):
                group.append(place)
                break
        else:
            groups.append([place])
    plain = [group for group in groups if all(targets_of(encoded[place]) is None for place in group)]
    for group in groups:
        if group in plain and len(plain) > 1:
            continue
        targets = next((t for place in group if (t := targets_of(encoded[place])) is not None), None)
        results = engine.run(encoded[group[0]]["input_ids"], targets, tasks=group)
        out |= split(group, results)
    if len(plain) > 1:
        out |= distinct(engine, encoded, [place for group in plain for place in group])
    return [out[place] for place in range(len(encoded))]


def agree(group: Sequence[pa.Table], table: pa.Table) -> bool:
    """Whether the table's sequences are the group's, and its targets, where it has any, are the group's, too."""
    if not group[0]["input_ids"].equals(table["input_ids"]):
        return False
    wanted = targets_of(table)
    return wanted is None or all(t is None or t.equals(wanted) for t in map(targets_of, group))


def split(places: Sequence[int], results: Results) -> dict[int, TaskResults]:
    return {place: TaskResults(raw, results.failed) for place, raw in zip(places, results.raw, strict=True)}


def distinct(engine: Engine, encoded: Sequence[pa.Table], places: Sequence[int]) -> dict[int, TaskResults]:
    """The tasks at `places`, none of them with targets, over the distinct sequences of their tables."""
    number: dict[bytes, int] = {}  # an object a sequence: only where tables differ
    owners = []
    for place in places:
        ids, splits = ragged(encoded[place]["input_ids"])
        data, ends = ids.tobytes(), (splits * ids.itemsize).tolist()
        keys = (data[start:end] for start, end in pairwise(ends))
        owners.append(np.array([number.setdefault(key, len(number)) for key in keys], np.int64))
    ids = np.frombuffer(b"".join(number), np.int32)
    splits = np.cumsum([0, *(len(key) // ids.itemsize for key in number)])
    results = engine.run(pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pa.array(ids)), tasks=places)
    out = {}
    for place, owner, raw in zip(places, owners, results.raw, strict=True):
        rows, _ = Units.of(engine.tasks[place].unit, splits, None).rows(owner)
        failed = {i: results.failed[n] for i, n in enumerate(owner.tolist()) if n in results.failed}
        out[place] = TaskResults(raw[rows], failed)
    return out
