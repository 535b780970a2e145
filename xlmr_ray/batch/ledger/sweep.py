"""Removes what crashed attempts left."""

from __future__ import annotations

import time

from xlmr_ray.batch.ledger.manifest import manifest_key
from xlmr_ray.batch.ledger.merge import merged_away
from xlmr_ray.batch.ledger.record import GRACE, committed, orphans
from xlmr_ray.batch.store.base import Entry, Store


def sweep(store: Store, *, dry_run: bool = False, older_than: float = GRACE) -> list[Entry]:
    """Remove what no record names, in all runs, and return it; `dry_run` only looks.

    In a run without a manifest an attempt may still be on its way to its record, so there, and among scratch objects,
    only what is older than `older_than` seconds goes; so do files that were merged as long ago. A run with a damaged
    record is not touched (raises `Damaged`).
    """
    before = time.time() - older_than
    found = [entry for scratch in ("_probe-", ".tmp/") for entry in store.list(scratch) if entry.modified <= before]
    found = [entry for entry in found if entry.key != ".tmp/lock"]
    for run_id in sorted({*store.folders("data/"), *store.folders("errors/")} - {"_delta_log"}):
        finished = store.head(manifest_key(run_id)) is not None
        attempts = {record.attempt for record in committed(store, run_id)}
        found += [entry for entry in orphans(store, run_id, attempts) if finished or entry.modified <= before]
    found += merged_away(store, before)
    if not dry_run:
        for entry in found:
            store.delete(entry.key)
    return found
