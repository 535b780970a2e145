"""What a store says about a run: every committed byte is read again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.counted import counted
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.json_by_line import Damaged, blocks_of, digest_of
from xlmr_ray.batch.ledger.manifest import (
    Manifest,
    Tally,
    as_finished,
    is_manifest,
    list_of,
    manifest_key,
    models_of,
    not_read_of,
    read_manifest,
)
from xlmr_ray.batch.ledger.merge import is_merged_away, merged_files
from xlmr_ray.batch.ledger.parts import is_in_parts
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import (
    HASHES,
    File,
    Record,
    committed_shards,
    orphans,
    plan_head,
    plan_key,
    planned_shards,
    read_record,
    record_key,
)
from xlmr_ray.batch.ledger.small_ids import Attempts, ShardIds
from xlmr_ray.batch.ledger.snapshot import table_problems
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed, UserError

WHOLE = 8 << 20  # bytes of a file that is read in one request
MOST = 20  # missing records that are named; a run hardly begun may lack a million


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` read. `problems` are a line each, naming the object; `orphans` counts files no record names."""

    run_id: str
    shards: int
    files: int
    bytes: int
    rows_in: int
    rows_ok: int
    rows_error: int
    orphans: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(store: Store, run_id: str | None = None) -> Report:
    """Check a run against its plan, records and manifest, and every file against its checksum and counts.

    Without `run_id` the published run. Raises UserError where there is no such run.
    """
    if run_id is None:
        published = current(store)
        if published is None:
            raise UserError(
                f"{store.url('')}: nothing is published there yet; name one of its runs: {_run_names(store)}"
            )
        run_id = published.run_id
    elif run_id not in set(store.folders("_runs/")):
        raise UserError(f"{store.url('')}: has no run {run_id}; its runs: {_run_names(store)}")

    problems: list[str] = []
    planned, plan_sha256, head = _read_plan(store, run_id, problems)
    manifest = _read_manifest(store, run_id, problems)
    if manifest is not None and planned is not None and plan_sha256 != manifest.plan_sha256:
        where = store.url(manifest_key(run_id))
        problems.append(f"{store.url(plan_key(run_id))}: its sha256 is not the one in {where}; one of them is damaged")

    attempts = Attempts()
    unread = 0  # records that are missing or damaged
    seen = bytearray(len(planned or ()))
    sizes = [0, 0]  # files and their bytes

    def records() -> Iterator[Record]:
        nonlocal unread
        shards = committed_shards(store, run_id)
        for shard, record, wrong in in_order(lambda shard: _check_shard(store, run_id, shard), shards):
            problems.extend(wrong)
            if planned is not None:
                index = planned.index(shard)
                if index < 0:
                    problems.append(f"{store.url(record_key(run_id, shard))}: its shard is not in the plan")
                else:
                    seen[index] = 1
            if record is None:
                unread += 1
                continue
            attempts.add(record.attempt)
            sizes[0] += len(record.files)
            sizes[1] += sum(file.bytes for file in record.files)
            yield record

    sums = Tally()
    listed = hashlib.sha256()
    for piece in list_of(sums.lines(map(counted, records()))):
        listed.update(piece)
    missing = seen.count(0)
    if planned is not None and missing:
        problems += [f"{store.url(record_key(run_id, shard))}: is missing" for shard in planned.missing(seen, MOST)]
        if missing > MOST:
            problems.append(f"{store.url(record_key(run_id, ''))}: and {missing - MOST} more records are missing")
    # without all records there is nothing to hold the manifest against
    if manifest is not None and not unread and not missing:
        found = sums.manifest(run_id, manifest.plan_sha256)
        derived = replace(found, models=models_of(head), not_read=not_read_of(head))
        if not is_manifest(store, as_finished(derived, manifest), listed.digest()):
            problems.append(f"{store.url(manifest_key(run_id))}: does not agree with the records")
    if manifest is not None and planned is not None:
        problems += table_problems(store, run_id)
        sizes[0] += len(merged := merged_files(store, run_id, problems))
        sizes[1] += sum(file.bytes for file in merged)
        problems += [
            problem for found in in_order(lambda file: _check_committed(store, file), merged) for problem in found
        ]
    return Report(
        run_id,
        sums.shards,
        sizes[0],
        sizes[1],
        sums.rows_in,
        sums.rows_ok,
        sums.rows_error,
        sum(1 for _ in orphans(store, run_id, attempts)) if not unread else 0,
        tuple(problems),
    )


def _read_plan(store: Store, run_id: str, problems: list[str]) -> tuple[ShardIds | None, str | None, Mapping[str, Any]]:
    """The planned shards, the plan's sha256 and its head; None, or an empty one, for what cannot be had."""
    key = plan_key(run_id)
    try:
        digest = digest_of(store, key)
    except FileNotFoundError:
        why = ": the run is being planned" if is_in_parts(store, run_id) else ""
        problems.append(f"{store.url(key)}: is missing{why}")
        return None, None, {}
    try:
        return ShardIds(planned_shards(store, run_id)), digest, plan_head(store, run_id)
    except Damaged as error:
        problems.append(str(error))
        return None, digest, {}


def _read_manifest(store: Store, run_id: str, problems: list[str]) -> Manifest | None:
    try:
        manifest = read_manifest(store, run_id)
    except Damaged as error:
        problems.append(str(error))
        return None
    if manifest is None:
        problems.append(f"{store.url(manifest_key(run_id))}: is missing: the run is not finished")
    return manifest


def _check_shard(store: Store, run_id: str, shard: str) -> tuple[str, Record | None, list[str]]:
    url = store.url(record_key(run_id, shard))
    try:
        record = read_record(store, run_id, shard)
    except JobFailed as error:
        return shard, None, [str(error)]
    if record is None:
        return shard, None, [f"{url}: is missing"]
    problems = [problem for file in record.files for problem in _check_committed(store, file)]
    if record.rows_in != record.rows_ok + record.rows_error:
        problems.append(f"{url}: {record.rows_in} rows in, but {record.rows_ok} out and {record.rows_error} errors")
    for folder, rows in (("data", record.rows_ok), ("errors", record.rows_error), (HASHES, record.rows_ok)):
        held = sum(file.rows for file in record.files if file.key.startswith(folder + "/"))
        if held != rows and (folder != HASHES or held):
            problems.append(f"{url}: counts {rows} rows in {folder}, its files {held}")
    return shard, record, problems


def _check_committed(store: Store, file: File) -> list[str]:
    url = store.url(file.key)
    digest = hashlib.sha256()
    size = 0
    try:
        # Opening takes more requests.
        with io.BytesIO(store.get(file.key)[0]) if file.bytes <= WHOLE else store.open(file.key) as source:
            for block in blocks_of(source):
                digest.update(block)
                size += len(block)
            if size != file.bytes:
                return [f"{url}: has {size} bytes, its record says {file.bytes}"]
            if digest.hexdigest() != file.sha256:
                return [f"{url}: is damaged: its sha256 is not the one in its record"]
            source.seek(0)
            rows = pq.read_metadata(source).num_rows
    except FileNotFoundError:
        return [] if is_merged_away(store, file.key) else [f"{url}: is missing"]
    except (OSError, pa.ArrowException) as error:
        return [f"{url}: cannot be read ({type(error).__name__})"]
    return [] if rows == file.rows else [f"{url}: has {rows} rows, its record says {file.rows}"]


def _run_names(store: Store) -> str:
    return ", ".join(store.folders("_runs/")) or "none"
