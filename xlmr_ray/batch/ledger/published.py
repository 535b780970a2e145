"""The published pointer: which run readers see."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace

from xlmr_ray.batch.ledger.json_by_line import VERSION, Damaged, canonical, parsed
from xlmr_ray.batch.ledger.manifest import read_manifest
from xlmr_ray.batch.ledger.record import plan_head
from xlmr_ray.batch.store.base import Changed, Exists, Store
from xlmr_ray.errors import JobFailed

CURRENT = "_current.json"


@dataclass(frozen=True, slots=True)
class Current:
    """The published run: `started` is when its driver was launched, `published` when the pointer moved (epoch s).

    `runs` are those whose rows are in its table, the first one first: the whole chain of an incremental job, else the
    run itself. `heads` has the last run of each job that was published here, by the hash of the job's identity.
    """

    run_id: str
    started: float
    published: float
    runs: tuple[str, ...] = ()
    heads: Mapping[str, str] = field(default_factory=dict)


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
    limited: bool = False,
) -> tuple[Current, bool]:
    """Point readers at a finished run. Returns what is published now, and whether it is this launch.

    `started` is when this driver was launched (epoch seconds; None: now), `job` the hash of the job's identity, `runs`
    the chain that the run ends (None: it is a full run). Of two runs the one launched later is the newer, whichever
    ends first: an older launch that ends late leaves the newer run published and says so by False, while launching an
    old job again publishes it again. A run that is `limited` to a part of its input never takes the place of a whole
    one, and any whole one takes its place. The pointer moves by compare-and-swap, so no publish is lost.
    """
    ours = _ours(store, run_id, started)

    def moved(found: Current | None) -> Current | None:
        newer = found is not None and (found.started, found.run_id == run_id) > (ours.started, False)
        if found is not None and (newer or limited):
            part = is_limited(store, found.run_id)
            if part < limited or (newer and part == limited):
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
        if found is None or found.run_id == after or found.started <= ours.started or is_limited(store, found.run_id):
            # Its successors are not older than a run, whenever they were launched.
            began = max(ours.started, found.started) if found and found.run_id == after else ours.started
            return replace(ours, started=began, runs=runs, heads=heads)
        return replace(found, heads=heads)

    now = _move(store, moved)
    return now, run_id in now.runs


def is_limited(store: Store, run_id: str) -> bool:
    """Whether the run's plan has a part of its input only (`input.limit`)."""
    try:
        return "limit" in plan_head(store, run_id).get("identity", {})
    except FileNotFoundError:
        return False


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
