"""Faults of what lies in the output: damaged objects, and files that no record names."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.lab import Lab, Tally
from tests.faults.rows import Rows, difference, published
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.manifest import manifest_key
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import new_attempt, plan_key, record_key
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed

WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "cut": lambda data: data[: len(data) * 2 // 3],
    "empty": lambda data: b"",
    "gone": lambda data: None,
}


def damaged(lab: Lab) -> Tally:
    """17: one object of a finished run is damaged: `verify` fails and names it; put back, it is content."""
    work = lab.work()
    lab.proxy.clear()
    tally = Tally()
    if lab.finish(tally, work):
        damage_each(tally, work.store)
    return tally


def damage_each(tally: Tally, store: Store) -> None:
    """One object of each kind, in each way; the store is left as it was."""
    for key in one_of_each_kind(store):
        whole = store.get(key)[0]
        for way, change in WAYS.items():
            data = change(whole)
            if data is None:
                store.delete(key)
            else:
                store.put(key, data)
            problems = verified(store, run_of(store, key))
            named = any(store.url(key) in problem for problem in problems)
            tally.struck(1, named, f"{key}, {way}: verify names it not: {problems[:2]}")
            store.put(key, whole)
    tally.expect(verified(store, None) == (), "put back, it is not in order")


def one_of_each_kind(store: Store) -> list[str]:
    found = current(store)
    assert found is not None
    record = next(record for record in committed(store, found.run_id) if len(record.files) == 2 or record.rows_error)
    some = [plan_key(found.run_id), record_key(found.run_id, record.shard), manifest_key(found.run_id)]
    return [*some, *(file.key for file in record.files)]


def run_of(store: Store, key: str) -> str:
    return key.split("/")[1]


def verified(store: Store, run_id: str | None) -> tuple[str, ...]:
    """What `verify` has to say, in lines; none where all is in order."""
    try:
        return verify(store, run_id).problems
    except JobFailed as error:
        return (str(error),)


def orphans(lab: Lab) -> Tally:
    """18: files of attempts that never committed lie about: readers see none of them, `sweep` removes only them."""
    work = lab.work()
    lab.proxy.clear()
    tally = Tally()
    if lab.finish(tally, work):
        litter(tally, work.store, work.clean)
    return tally


def litter(tally: Tally, store: Store, clean: Rows) -> None:
    """Copies of committed files under other attempts' names, and half ones."""
    found = current(store)
    assert found is not None
    before = {entry.key for entry in store.list("")}
    left = []
    for record in committed(store, found.run_id):
        for file in record.files:
            data = store.get(file.key)[0]
            for content in (data, data[: len(data) // 2]):
                left.append(file.key.replace(record.attempt, new_attempt()))
                store.put(left[-1], content)
    unseen = difference(clean, published(store))
    tally.lost += unseen.lost
    tally.twice += unseen.twice
    removed = [entry.key for entry in sweep(store)]
    same = tally.expect(sorted(removed) == sorted(left), f"{len(removed)} files swept of {len(left)}")
    same &= tally.expect({entry.key for entry in store.list("")} == before, "other files than before")
    tally.struck(len(left), same and unseen.same and verified(store, None) == (), "orphans")
