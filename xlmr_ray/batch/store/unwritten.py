"""A store that is only read: what is written to it is kept in memory, and seen in place of what the store has."""

from __future__ import annotations

import hashlib
import heapq
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from xlmr_ray.batch.store.base import Entry, Exists, Store, look_and_replace


@dataclass(frozen=True)
class Unwritten:
    """`store` as it would be after some writes. `written`: their keys and bytes, None for what was deleted."""

    store: Store
    written: dict[str, bytes | None] = field(default_factory=dict)

    @property
    def at_least_once(self) -> bool:
        return self.store.at_least_once

    def create(self, key: str, data: bytes) -> str:
        if self.head(key) is not None:
            raise Exists(self.url(key))
        return self.put(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        return look_and_replace(self, key, data, etag)

    def put(self, key: str, data: bytes) -> str:
        self.written[key] = data
        return etag_of_bytes(data)

    def get(self, key: str) -> tuple[bytes, str]:
        if key not in self.written:
            return self.store.get(key)
        if (data := self.written[key]) is None:
            raise FileNotFoundError(self.url(key))
        return data, etag_of_bytes(data)

    def head(self, key: str) -> Entry | None:
        if key not in self.written:
            return self.store.head(key)
        data = self.written[key]
        return None if data is None else Entry(key, len(data), etag_of_bytes(data), time.time())

    def list(self, prefix: str) -> Iterator[Entry]:
        theirs = (entry for entry in self.store.list(prefix) if entry.key not in self.written)
        ours = (entry for key in sorted(self.written) if key.startswith(prefix) and (entry := self.head(key)))
        return heapq.merge(theirs, ours, key=lambda entry: entry.key)

    def folders(self, prefix: str) -> Iterator[str]:
        ours = {key[len(prefix) :] for key, data in self.written.items() if data is not None and key.startswith(prefix)}
        names = {name.partition("/")[0] for name in ours if "/" in name}
        return iter(sorted(names.union(self.store.folders(prefix))))

    def open(self, key: str) -> BinaryIO:
        return io.BytesIO(self.get(key)[0]) if key in self.written else self.store.open(key)

    def delete(self, key: str) -> None:
        self.written[key] = None

    def url(self, key: str) -> str:
        return self.store.url(key)

    def probe(self) -> None:
        self.check()

    def check(self) -> None:
        self.store.check()


def etag_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
