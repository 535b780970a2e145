"""Which passes of the encoder serve several tasks' encoded tables: a sequence that tasks share is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.tasks.encoded import ragged, targets_of


@dataclass(frozen=True)
class Pass:
    """Sequences (`list<int32>`) with their `targets`, for the tasks of some tables (by index). `owners`: the sequence
    of each row of their tables; None where the rows are the sequences.
    """

    input_ids: pa.ListArray | pa.ChunkedArray
    targets: pa.ChunkedArray | None
    tasks: list[int]
    owners: list[NDArray[np.int64]] | None = None


def passes_of(encoded: Sequence[pa.Table]) -> list[Pass]:
    """The passes for a table a task.

    Tables whose ids are the same go through the encoder together. Of others, which cut or windowed some documents in
    another way, each distinct sequence goes through once. A task with targets, over other sequences than the other
    tasks', has a pass for itself: its head is the expensive part.
    """
    groups: list[list[int]] = []
    for index, table in enumerate(encoded):
        for group in groups:
            if agree([encoded[other] for other in group], table):
                group.append(index)
                break
        else:
            groups.append([index])
    plain = [group for group in groups if all(targets_of(encoded[index]) is None for index in group)]
    passes = []
    for group in groups:
        if group in plain and len(plain) > 1:
            continue
        targets = next((t for index in group if (t := targets_of(encoded[index])) is not None), None)
        passes.append(Pass(encoded[group[0]]["input_ids"], targets, group))
    if len(plain) > 1:
        passes.append(distinct(encoded, [index for group in plain for index in group]))
    return passes


def agree(group: Sequence[pa.Table], table: pa.Table) -> bool:
    """Whether the table's sequences are the group's, and its targets, where it has any, are the group's, too."""
    if not group[0]["input_ids"].equals(table["input_ids"]):
        return False
    wanted = targets_of(table)
    return wanted is None or all(t is None or t.equals(wanted) for t in map(targets_of, group))


def distinct(encoded: Sequence[pa.Table], tasks: list[int]) -> Pass:
    """The distinct sequences of the tables of tasks without targets."""
    number: dict[bytes, int] = {}  # an object a sequence: only where tables differ
    owners = []
    for index in tasks:
        ids, splits = ragged(encoded[index]["input_ids"])
        data, ends = ids.tobytes(), (splits * ids.itemsize).tolist()
        keys = (data[start:end] for start, end in pairwise(ends))
        owners.append(np.array([number.setdefault(key, len(number)) for key in keys], np.int64))
    ids = np.frombuffer(b"".join(number), np.int32)
    splits = np.cumsum([0, *(len(key) // ids.itemsize for key in number)])
    return Pass(pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pa.array(ids)), None, tasks, owners)
