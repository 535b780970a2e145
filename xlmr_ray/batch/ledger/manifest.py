"""The end of a run: its manifest, the list of its committed files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

from xlmr_ray.batch.ledger.counted import Counted
from xlmr_ray.batch.ledger.gathered import all_counted
from xlmr_ray.batch.ledger.json_by_line import (
    VERSION,
    Damaged,
    blocks_of,
    canonical,
    digest_of,
    first_of,
    items_of,
    list_pieces,
)
from xlmr_ray.batch.ledger.record import File, orphans, plan_head, plan_key
from xlmr_ray.batch.ledger.small_ids import Attempts, ShardIds
from xlmr_ray.batch.ledger.spool import spooled
from xlmr_ray.batch.store.base import Exists, Store, create_file
from xlmr_ray.errors import JobFailed

# What manifests did not always have.
OPTIONAL = {"models", "code", "job_file", "rows_lost", "lost_estimated", "not_read"}
MOST_NAMES = 20


@dataclass(frozen=True, slots=True)
class TaskModel:
    """What a task's rows were scored by: digests of weights and tokenizer. `prefix` is that of the task's columns."""

    task: str
    prefix: str
    weights: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class NotRead:
    """Files that were found beside the inputs and not read, since their endings name no format: how many, the first."""

    files: int
    some: tuple[str, ...]

    def __str__(self) -> str:
        rest = f" and {self.files - 3:,} more" if self.files > 3 else ""
        return f"not read, no known ending: {', '.join(self.some[:3])}{rest}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished run in sum. `bytes` are those of its files; `last_commit` is the time of its last shard's record.

    `models` are the plan's. `code` is the version of the package that finished the run, `job_file` the key of the
    object with the job file as it was launched last; what each launch was made of is beside it (observe/launches.py).
    `rows_lost` and `lost_estimated`: those of the records; the input had `rows_in + rows_lost` rows. `not_read`: the
    plan's, None where there is nothing of the kind.
    """

    run_id: str
    plan_sha256: str
    shards: int
    rows_in: int
    rows_ok: int
    rows_error: int
    tokens: int
    bytes: int
    last_commit: float
    models: tuple[TaskModel, ...] = ()
    code: str = ""
    job_file: str = ""
    rows_lost: int = 0
    lost_estimated: bool = False
    not_read: NotRead | None = None


def manifest_key(run_id: str) -> str:
    return f"_runs/{run_id}/manifest.json"


def finish(store: Store, run_id: str, shards: Iterable[str], *, code: str = "", job_file: str = "") -> Manifest:
    """Write the manifest of a run whose every shard has a record; `shards` are the plan's, `code` and `job_file` what
    the manifest says of this launch.

    Files of attempts that lost or crashed are removed first, so that from the manifest on a plain reader of
    `data/<run_id>` sees the committed rows only. Finishing twice changes nothing, with other code neither: what the
    first one said stays. Raises JobFailed where a shard has no record, or one is there that the plan has not.
    """
    planned = ShardIds(shards)
    seen = bytearray(len(planned))
    attempts = Attempts()
    where = f"run {run_id} in {store.url('')}"

    def checked() -> Iterator[Counted]:
        for one in all_counted(store, run_id):
            index = planned.index(one.shard)
            if index < 0:
                raise JobFailed(f"{where}: shard {one.shard} is committed but not in the plan")
            seen[index] = True
            attempts.add(one.attempt)
            yield one

    digest, head = digest_of(store, plan_key(run_id)), plan_head(store, run_id)
    tally = Tally()
    # What stands before the list is known after it.
    with spooled(list_of(tally.lines(checked()))) as body:
        if missing := seen.count(0):
            (first,) = planned.missing(seen, 1)
            raise JobFailed(f"{where}: {missing} of {len(planned)} shards have no record, the first {first}")
        for key in orphans(store, run_id, attempts):
            store.delete(key)
        sums = tally.manifest(run_id, digest)
        manifest = replace(sums, models=models_of(head), code=code, job_file=job_file, not_read=not_read_of(head))
        key = manifest_key(run_id)
        try:
            with spooled(chain([manifest_head(manifest)], blocks_of(body))) as whole:
                create_file(store, key, whole)
        except Exists:
            manifest = as_finished(manifest, read_manifest(store, run_id))
            body.seek(0)
            listed = hashlib.sha256()
            for block in blocks_of(body):
                listed.update(block)
            if not is_manifest(store, manifest, listed.digest()):
                raise Damaged(f"{store.url(key)}: is damaged: it does not agree with the run's records") from None
    return manifest


def list_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """A manifest's list of what is committed, all that stands after its head, in pieces."""
    return list_pieces("committed", lines)


def is_manifest(store: Store, manifest: Manifest, rest: bytes) -> bool:
    """Whether the run's manifest in the store is this one, and has a list of which the SHA-256 is `rest`."""
    digest, head = hashlib.sha256(), manifest_head(manifest)
    with store.open(manifest_key(manifest.run_id)) as file:
        if file.read(len(head)) != head:
            return False
        for block in blocks_of(file):
            digest.update(block)
    return digest.digest() == rest


def as_finished(manifest: Manifest, there: Manifest | None) -> Manifest:
    """The manifest of plan and records as the launch that finished the run first, with its manifest `there`, wrote it.

    Nothing but what names that launch is taken from it, so the rest can be checked. Manifests were without models once.
    """
    if there is None:
        return manifest
    return replace(manifest, models=there.models and manifest.models, code=there.code, job_file=there.job_file)


def manifest_head(manifest: Manifest) -> bytes:
    """What stands before the list in the manifest's object. What is not known is left out; what no record and no plan
    says has a checksum.
    """
    content = {name: value for name, value in asdict(manifest).items() if name not in OPTIONAL or value}
    if not OPTIONAL.isdisjoint(content):
        content["check"] = hashlib.sha256(canonical(content)).hexdigest()
    return canonical({"version": VERSION, **content})[:-1] + b","


def models_of(plan: Mapping[str, Any]) -> tuple[TaskModel, ...]:
    """The models that a plan's head names, task by task; none where it names none."""
    tasks = plan.get("identity", {}).get("tasks", [])
    return tuple(TaskModel(**{name: task[name] for name in TaskModel.__dataclass_fields__}) for task in tasks)


def not_read_of(head: Mapping[str, Any]) -> NotRead | None:
    """What the head of a plan or a manifest says of files that were not read."""
    content = head.get("not_read")
    return None if content is None else NotRead(content["files"], tuple(content["some"]))


def not_read(names: Sequence[str]) -> NotRead | None:
    """None where there are none."""
    return NotRead(len(names), tuple(names[:MOST_NAMES])) if names else None


class Tally:
    """The sums over a run's records, as they pass."""

    def __init__(self) -> None:
        self.shards = self.rows_in = self.rows_ok = self.rows_error = self.tokens = self.bytes = 0
        self.rows_lost = 0
        self.lost_estimated = False
        self.last_commit = 0.0

    def lines(self, shards: Iterable[Counted]) -> Iterator[bytes]:
        """A manifest's line for each."""
        for one in shards:
            self.shards += 1
            self.rows_in += one.rows_in
            self.rows_ok += one.rows_ok
            self.rows_error += one.rows_error
            self.rows_lost += one.rows_lost
            self.lost_estimated |= one.lost_estimated
            self.tokens += one.tokens
            self.bytes += one.file_bytes
            self.last_commit = max(self.last_commit, one.committed_at)
            yield one.line

    def manifest(self, run_id: str, plan_sha256: str) -> Manifest:
        return Manifest(run_id, plan_sha256, **vars(self))


def read_manifest(store: Store, run_id: str) -> Manifest | None:
    """The sums of a finished run, None where it is not finished. Reads the first line only. Raises `Damaged`."""
    key = manifest_key(run_id)
    try:
        with store.open(key) as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    content = first_of(line, store.url(key))
    try:
        if content["version"] != VERSION:
            raise ValueError(content["version"])
        models = tuple(TaskModel(**model) for model in content.get("models", ()))
        # A later version may have added to it.
        known = {name: content[name] for name in Manifest.__dataclass_fields__ if name in content}
        return Manifest(**{**known, "models": models, "not_read": not_read_of(content)})
    except (KeyError, TypeError, ValueError):
        wrong = f"its head is not that of a manifest of format {VERSION}"
        raise Damaged(f"{store.url(key)}: is damaged: {wrong}") from None


def manifest_files(store: Store, run_id: str) -> Iterator[File]:
    """The committed files of a finished run, data and errors, in shard order. Raises FileNotFoundError, `Damaged`."""
    for line in items_of(store, manifest_key(run_id), "committed"):
        for file in line["files"]:
            yield File(**file)
