"""Results of sequences that were computed before, by a 128-bit hash of all that a task's forward reads of one; no more
of them than fit in so many bytes, those that were asked for longest ago leave first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from threading import Lock
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

V = TypeVar("V")
# Bytes of memory that a result takes beside its numbers: key, object, place in the dictionary (317 and 375 seen, with a
# million hashes).
ENTRY = 384


class ResultCache(Generic[V]):
    """At most `most` bytes of values with their entries. Any thread may ask."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self.values: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self.lock = Lock()

    def find(self, key: bytes) -> V | None:
        with self.lock:
            found = self.values.get(key)
            if found is None:
                return None
            self.values.move_to_end(key)
            return found[0]

    def keep(self, key: bytes, value: V, size: int) -> None:
        """A value of so many bytes, which nobody changes from now on; one that is larger than all may be is not kept.

        One that is there under the key stays: it is the same.
        """
        size += ENTRY
        with self.lock:
            if key in self.values or size > self.most:
                return
            self.values[key] = value, size
            self.held += size
            while self.held > self.most:
                _, (_, gone) = self.values.popitem(last=False)
                self.held -= gone


def keys_of(
    prefix: bytes,
    ids: NDArray[np.int32],
    splits: NDArray[np.int64],
    targets: NDArray[np.int32] | None,
    which: Sequence[int] | NDArray[np.int64],
) -> list[bytes]:
    """Of some sequences of flat ids `(T)` and their targets `(T)`, at `splits (N + 1)`; `prefix` stands for all else
    that decides their results.
    """
    begun = blake2b(len(prefix).to_bytes(4, "little") + prefix, digest_size=16)
    read = ids if targets is None else np.stack([ids, targets], axis=1)
    begun.update(b"ids" if targets is None else b"ids, targets")
    data = read.tobytes()
    size = read.itemsize * (1 if targets is None else 2)
    ends = list(pairwise((splits * size).tolist()))
    keys = []
    for start, end in (ends[i] for i in which):
        one = begun.copy()
        one.update(data[start:end])
        keys.append(one.digest())
    return keys


class KnownResults(Protocol):
    """Where an engine looks for results, and leaves them: bytes of float32, by key. Neither raises."""

    def find(self, keys: list[bytes]) -> list[bytes | None]: ...

    def keep(self, results: dict[bytes, bytes]) -> None: ...
