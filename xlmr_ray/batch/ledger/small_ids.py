"""Names of a run's shards and attempts in eight bytes each, so that a million of either take little memory."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from heapq import nsmallest
from itertools import chain

import numpy as np

# As the plan names them: the index of the input and the number of the shard in it.
NUMBERED = re.compile(r"([0-9]{7,9})-([0-9]{6,9})", re.ASCII)
LOW = (1 << 32) - 1
ATTEMPT = re.compile(r"[0-9a-f]{16}", re.ASCII)


class ShardIds:
    """The ids of a plan's shards. The index of an id, from 0 on, is that in the order in which they came."""

    def __init__(self, ids: Iterable[str]) -> None:
        keys, indices = array("q"), array("q")
        self._others: dict[str, int] = {}  # of other forms
        self._count = 0
        for index, name in enumerate(ids):
            self._count = index + 1
            key = _number_of(name)
            if key < 0:
                self._others.setdefault(name, index)
            else:
                keys.append(key)
                indices.append(index)
        order = np.argsort(np.frombuffer(keys, np.int64), kind="stable") if keys else np.empty(0, np.int64)
        self._keys = array("q", np.frombuffer(keys, np.int64)[order].tobytes() if keys else b"")
        self._indices = array("q", np.frombuffer(indices, np.int64)[order].tobytes() if keys else b"")

    def __len__(self) -> int:
        return self._count

    def index(self, name: str) -> int:
        """-1 where there is no such id."""
        key = _number_of(name)
        if key < 0:
            return self._others.get(name, -1)
        at = bisect_left(self._keys, key)
        return self._indices[at] if at < len(self._keys) and self._keys[at] == key else -1

    def missing(self, seen: bytearray, most: int) -> list[str]:
        """Of the ids at indices that are 0 in `seen`, the first `most` by name."""
        numbered = zip(self._keys, self._indices, strict=True)
        names = (f"{key >> 32:07d}-{key & LOW:06d}" for key, index in numbered if not seen[index])
        others = (name for name, index in self._others.items() if not seen[index])
        return nsmallest(most, chain(names, others))


def _number_of(name: str) -> int:
    found = NUMBERED.fullmatch(name)
    if found is None:
        return -1
    index, part = int(found[1]), int(found[2])
    # What is spelt otherwise is another id.
    return (index << 32) + part if f"{index:07d}-{part:06d}" == name else -1


class Attempts:
    """The attempts that are in records."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._sorted = True

    def add(self, attempt: str) -> None:
        """Attempts of another form have no files that could be taken for those of a crashed one."""
        if ATTEMPT.fullmatch(attempt):
            self._numbers.append(int(attempt, 16))
            self._sorted = False

    def __contains__(self, attempt: str) -> bool:
        if not self._sorted:
            np.frombuffer(self._numbers, np.uint64).sort()
            self._sorted = True
        number = int(attempt, 16)
        at = bisect_left(self._numbers, number)
        return at < len(self._numbers) and self._numbers[at] == number
