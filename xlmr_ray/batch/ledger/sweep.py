"""Removes what crashed attempts left."""

from __future__ import annotations

import time
from functools import partial

from xlmr_ray.batch.lake.sink import table_of
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.json_by_line import items_of
from xlmr_ray.batch.ledger.manifest import manifest_key
from xlmr_ray.batch.ledger.merge import merged_away
from xlmr_ray.batch.ledger.record import FOLDERS, GRACE, HASHES, read_record, shard_of_orphan
from xlmr_ray.batch.ledger.small_ids import Attempts
from xlmr_ray.batch.store.base import Entry, Store


def sweep(store: Store, *, dry_run: bool = False, older_than: float = GRACE) -> list[Entry]:
    """Remove what no record names, in all runs, and return it; `dry_run` only looks.

    In a run without a manifest an attempt may still be on its way to its record, so there, and among scratch objects,
    only what is older than `older_than` seconds goes; so do files that were merged as long ago, but where the output is
    a table, too, whose older versions name them. A file goes only after a look at its shard's record; where that is
    damaged, nothing does (raises `Damaged`).
    """
    before = time.time() - older_than
    found = [entry for scratch in ("_probe-", ".tmp/") for entry in store.list(scratch) if entry.modified <= before]
    found = [entry for entry in found if entry.key != ".tmp/lock"]
    for run_id in sorted(
        {*store.folders("data/"), *store.folders("errors/"), *store.folders(f"{HASHES}/")} - {"_delta_log"}
    ):
        finished, attempts = store.head(manifest_key(run_id)) is not None, Attempts()
        if finished:  # which saves a look at each record
            for line in items_of(store, manifest_key(run_id), "committed"):
                attempts.add(line["attempt"])
        entries = (entry for folder in FOLDERS for entry in store.list(f"{folder}/{run_id}/"))
        files = (
            (shard, entry)
            for entry in entries
            if (shard := shard_of_orphan(entry.key, attempts)) is not None and (finished or entry.modified <= before)
        )
        found += [entry for entry in in_order(partial(_if_orphan, store, run_id), files) if entry is not None]
    if table_of(store) is None:  # whose older versions name the files of shards
        found += merged_away(store, before)
    if not dry_run:
        for entry in found:
            store.delete(entry.key)
    return found


def _if_orphan(store: Store, run_id: str, file: tuple[str, Entry]) -> Entry | None:
    """A file, with its shard, that the shard's record does not name."""
    shard, entry = file
    record = read_record(store, run_id, shard)
    return entry if record is None or all(named.key != entry.key for named in record.files) else None
