"""The end of a run: its manifest, the published pointer, and the removal of what crashed attempts left."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from xlmr_ray.batch.ledger.record import (
    ATTEMPT_FILE,
    GRACE,
    VERSION,
    Damaged,
    File,
    Record,
    by_line,
    canonical,
    committed,
    first_of,
    lines_of,
    parsed,
    plan_key,
)
from xlmr_ray.batch.store.base import Changed, Entry, Exists, Store
from xlmr_ray.errors import JobFailed

CURRENT = "_current.json"
# What manifests did not always have.
OPTIONAL = {"models", "code", "job_file"}


@dataclass(frozen=True, slots=True)
class Model:
    """What a task's rows were scored by: digests of weights and tokenizer. `prefix` is that of the task's columns."""

    task: str
    prefix: str
    weights: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished run in sum. `bytes` are those of its files; `last_commit` is the time of its last shard's record.

    `models` are the plan's. `code` is the version of the package that finished the run, `job_file` the key of the
    object with the job file as it was launched last; what each launch was made of is beside it (launch.py).
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
    models: tuple[Model, ...] = ()
    code: str = ""
    job_file: str = ""


@dataclass(frozen=True, slots=True)
class Current:
    """The published run: `started` is when its driver was launched, `published` when the pointer moved (epoch s).

    `runs` are those whose rows are in its table, the first one first: the whole chain of an incremental job, else the
    run alone. `heads` has the last run of each job that was published here, by the hash of the job's identity.
    """

    run_id: str
    started: float
    published: float
    runs: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)


def manifest_key(run_id: str) -> str:
    return f"_runs/{run_id}/manifest.json"


def finish(store: Store, run_id: str, shards: Iterable[str], *, code: str = "", job_file: str = "") -> Manifest:
    """Write the manifest of a run whose every shard has a record; `shards` are the plan's, `code` and `job_file` what
    the manifest says of this launch.

    Files of attempts that lost or crashed are removed first, so that from the manifest on a plain reader of
    `data/<run_id>` sees the committed rows only. Finishing twice changes nothing, with other code neither: what the
    first one said stays. Raises JobFailed where a shard has no record, or one is there that the plan has not.
    """
    missing = set(shards)
    planned = len(missing)
    attempts: set[str] = set()
    where = f"run {run_id} in {store.url('')}"

    def checked() -> Iterator[Record]:
        for record in committed(store, run_id):
            if record.shard not in missing:
                raise JobFailed(
                    f"run {run_id} in {store.url('')}: shard {record.shard} is committed but not in the plan"
                )
            missing.remove(record.shard)
            attempts.add(record.attempt)
            yield record

    plan = store.get(plan_key(run_id))[0]
    digest, models = hashlib.sha256(plan).hexdigest(), models_of(plan, store.url(plan_key(run_id)))
    del plan  # it may be large
    tally = Tally()
    body = memoryview(by_line({}, "committed", tally.lines(checked())))[1:]
    manifest = replace(tally.manifest(run_id, digest), models=models, code=code, job_file=job_file)
    if missing:
        raise JobFailed(f"{where}: {len(missing)} of {planned} shards have no record, the first {min(missing)}")
    for entry in orphans(store, run_id, attempts):
        store.delete(entry.key)
    key = manifest_key(run_id)
    try:
        store.create(key, b"".join((head_of(manifest), body)))
    except Exists:
        manifest = as_finished(manifest, read_manifest(store, run_id))
        if store.get(key)[0] != b"".join((head_of(manifest), body)):
            raise Damaged(f"{store.url(key)}: is damaged: it does not agree with the run's records") from None
    return manifest


def as_finished(manifest: Manifest, there: Manifest | None) -> Manifest:
    """The manifest of plan and records as the launch that finished the run first, with its manifest `there`, wrote it.

    Nothing but what names that launch is taken from it, so the rest can be checked. Manifests were without models once.
    """
    if there is None:
        return manifest
    return replace(manifest, models=there.models and manifest.models, code=there.code, job_file=there.job_file)


def head_of(manifest: Manifest) -> bytes:
    """What stands before the list in the manifest's object. What is not known is left out; what no record and no plan
    says has a checksum.
    """
    content = {name: value for name, value in asdict(manifest).items() if name not in OPTIONAL or value}
    if not OPTIONAL.isdisjoint(content):
        content["check"] = hashlib.sha256(canonical(content)).hexdigest()
    return canonical({"version": VERSION, **content})[:-1] + b","


def models_of(plan: bytes, url: str) -> tuple[Model, ...]:
    """The models that a plan names, task by task; none where it names none. Raises `Damaged`."""
    tasks = first_of(io.BytesIO(plan).readline(), url).get("identity", {}).get("tasks", [])
    return tuple(Model(**{name: task[name] for name in Model.__dataclass_fields__}) for task in tasks)


class Tally:
    """The sums over a run's records, as they pass."""

    def __init__(self) -> None:
        self.shards = self.rows_in = self.rows_ok = self.rows_error = self.tokens = self.bytes = 0
        self.last_commit = 0.0

    def lines(self, records: Iterable[Record]) -> Iterator[dict[str, object]]:
        """A manifest's line for each record."""
        for record in records:
            self.shards += 1
            self.rows_in += record.rows_in
            self.rows_ok += record.rows_ok
            self.rows_error += record.rows_error
            self.tokens += record.stats.tokens
            self.bytes += sum(file.bytes for file in record.files)
            self.last_commit = max(self.last_commit, record.committed_at)
            yield {
                "shard": record.shard,
                "attempt": record.attempt,
                "source_key": record.source_key,
                "source_etag": record.source_etag,
                "files": [asdict(file) for file in record.files],
            }

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
        models = tuple(Model(**model) for model in content.get("models", ()))
        # A later version may have added to it.
        known = {name: content[name] for name in Manifest.__dataclass_fields__ if name in content}
        return Manifest(**{**known, "models": models})
    except (KeyError, TypeError, ValueError):
        wrong = f"its head is not that of a manifest of format {VERSION}"
        raise Damaged(f"{store.url(key)}: is damaged: {wrong}") from None


def manifest_files(store: Store, run_id: str) -> Iterator[File]:
    """The committed files of a finished run, data and errors, in shard order. Raises FileNotFoundError, `Damaged`."""
    key = manifest_key(run_id)
    for line in lines_of(store.get(key)[0], "committed", store.url(key)):
        for file in line["files"]:
            yield File(**file)


# The published run


def current(store: Store) -> Current | None:
    """What `_current.json` says; None where nothing was published yet. Raises `Damaged`."""
    found = _current(store)
    return found[0] if found else None


def _current(store: Store) -> tuple[Current, str] | None:
    try:
        data, etag = store.get(CURRENT)
    except FileNotFoundError:
        return None
    content = parsed(data, store.url(CURRENT))
    try:
        return Current(
            str(content["run_id"]),
            float(content["started"]),
            float(content["published"]),
            tuple(map(str, content.get("runs", [content["run_id"]]))),
            {str(job): str(run) for job, run in content.get("heads", {}).items()},
        ), etag
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Damaged(f"{store.url(CURRENT)}: is damaged: has no run_id, started and published") from None


def publish(
    store: Store,
    run_id: str,
    *,
    started: float | None = None,
    job: str | None = None,
    runs: tuple[str, ...] | None = None,
) -> tuple[Current, bool]:
    """Point readers at a finished run. Returns what is published now, and whether it is this launch.

    `started` is when this driver was launched (epoch seconds; None: now), `job` the hash of the job's identity, `runs`
    the chain that the run ends (None: it is a full run). Of two runs the one launched later is the newer, whichever
    ends first: an older launch that ends late leaves the newer run published and says so by False, while launching an
    old job again publishes it again. The pointer moves by compare-and-swap, so no publish is lost.
    """
    ours = _ours(store, run_id, started)

    def moved(found: Current | None) -> Current | None:
        if found is not None and (found.started, found.run_id == run_id) > (ours.started, False):
            return None
        heads = found.heads if found else {}
        return replace(ours, runs=runs or (run_id,), heads={**heads, job: run_id} if job else heads)

    now = _move(store, moved)
    return now, now.run_id == run_id


def publish_next(
    store: Store, run_id: str, *, job: str, after: str | None, runs: tuple[str, ...], started: float | None = None
) -> tuple[Current, bool]:
    """Put a finished run at the end of its job's chain, which is `runs`, and point readers at it where they were at the
    run `after`; readers of another job are not called away from one that was launched later than this one.

    Returns what is published now, and whether the run is in it. Where the chain has gone on otherwise, nothing changes.
    """
    ours = _ours(store, run_id, started)

    def moved(found: Current | None) -> Current | None:
        heads = found.heads if found else {}
        if heads.get(job) != after:
            return None
        heads = {**heads, job: run_id}
        if found is None or found.run_id == after or found.started <= ours.started:
            # Its successors are not older than a run, whenever they were launched.
            return replace(ours, started=max(ours.started, found.started if found else 0), runs=runs, heads=heads)
        return replace(found, heads=heads)

    now = _move(store, moved)
    return now, run_id in now.runs


def _ours(store: Store, run_id: str, started: float | None) -> Current:
    if read_manifest(store, run_id) is None:
        raise JobFailed(f"run {run_id} in {store.url('')}: is not finished, so it cannot be published")
    now = time.time()
    return Current(run_id, round(now if started is None else started, 3), round(now, 3))


def _move(store: Store, moved: Callable[[Current | None], Current | None]) -> Current:
    """Replace the pointer by what `moved` makes of it, until nobody else did so meanwhile; None: leave it as it is."""
    while True:
        found = _current(store)
        new = moved(found[0] if found else None)
        if new is None:
            if found is None:
                raise JobFailed(f"{store.url(CURRENT)}: is gone, so what is published is not known; run the job again")
            return found[0]
        data = canonical({"version": VERSION, **asdict(new)})
        try:
            if found is None:
                store.create(CURRENT, data)
            else:
                store.replace(CURRENT, data, found[1])
        except (Exists, Changed):
            continue  # somebody published meanwhile: look again
        return new


# What no record names


def orphans(store: Store, run_id: str, attempts: set[str]) -> Iterator[Entry]:
    """Data and error files of attempts other than `attempts`; files that are not ours by name are left out."""
    for folder in ("data", "errors"):
        for entry in store.list(f"{folder}/{run_id}/"):
            name = ATTEMPT_FILE.fullmatch(entry.key.rpartition("/")[2])
            if name is not None and name["attempt"] not in attempts:
                yield entry


def sweep(store: Store, *, dry_run: bool = False, older_than: float = GRACE) -> list[Entry]:
    """Remove what no record names, in all runs, and return it; `dry_run` only looks.

    In a run without a manifest an attempt may still be on its way to its record, so there, and among scratch objects,
    only what is older than `older_than` seconds goes. A run with a damaged record is not touched (raises `Damaged`).
    """
    before = time.time() - older_than
    found = [entry for scratch in ("_probe-", ".tmp/") for entry in store.list(scratch) if entry.modified <= before]
    found = [entry for entry in found if entry.key != ".tmp/lock"]
    for run_id in sorted({*store.folders("data/"), *store.folders("errors/")}):
        finished = store.head(manifest_key(run_id)) is not None
        attempts = {record.attempt for record in committed(store, run_id)}
        found += [entry for entry in orphans(store, run_id, attempts) if finished or entry.modified <= before]
    if not dry_run:
        for entry in found:
            store.delete(entry.key)
    return found
