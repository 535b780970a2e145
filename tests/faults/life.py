"""The whole life of a small run on a store, without Ray: plan, shards, manifest, publication; and stores that kill."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

from tests.batch.runs import RUN, commit, plan
from tests.faults.rows import Rows, published
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import committed_shards
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.store.open import open_store

SHARDS = 4
CHANGES = ("create", "replace", "put", "delete")


def live(store: Store) -> None:
    """What a driver and its writers do, going on from whatever is there already."""
    shards = plan(store, SHARDS)
    done = set(committed_shards(store, RUN))
    for shard in shards:
        if shard not in done:
            commit(store, shard, ok=3, bad=1)
    finish(store, RUN, shards)
    publish(store, RUN)


def lived(store: Store) -> Rows:
    live(store)
    return published(store)


class Watched:
    """A store that tells the number and name of each write or removal before it is done."""

    def __init__(self, store: Store, before: Callable[[int, str], object]) -> None:
        self.store, self.before = store, before
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if name not in CHANGES:
            return found

        def change(*args: Any, **options: Any) -> Any:
            self.before(self.count, name)
            self.count += 1
            return found(*args, **options)

        return change


def changes(store: Store) -> list[str]:
    """The changes that a life makes to an empty store."""
    seen: list[str] = []
    live(Watched(store, lambda number, name: seen.append(name)))  # type: ignore[arg-type]
    return seen


def live_until(url: str, options: Mapping[str, object] | None, step: int) -> None:
    """The body of a process that is killed before its `step`th change, which is after the one before it."""

    def before(number: int, name: str) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    live(Watched(open_store(url, options=options), before))  # type: ignore[arg-type]


def live_until_system_call(url: str, name: str, number: int, after: bool) -> None:
    """The body of a process that is killed around the `number`th call of `os.<name>`: within a local store's write."""
    real = getattr(os, name)
    count = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **options)
        if count == number and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, name, call)
    live(open_store(url))


def live_together(url: str, options: Mapping[str, object] | None, gate: Any) -> None:
    """The body of one of several processes that drive the same run at the same time."""
    store = open_store(url, options=options)
    store.head("warm")
    gate.wait(60)
    live(store)
