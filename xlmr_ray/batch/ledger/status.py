"""How far each run of a store is and who drives it, only by what is in the store, so from any machine.

Of an unfinished run the commit records are only listed; read are those of shards that have an error file. So a look at
a run of a million shards costs a thousand requests and not a million.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np

from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.json_by_line import items_of
from xlmr_ray.batch.ledger.lease import Holder, holder
from xlmr_ray.batch.ledger.manifest import Manifest, NotRead, not_read_of, read_manifest
from xlmr_ray.batch.ledger.parts import part_keys
from xlmr_ray.batch.ledger.published import Current, current
from xlmr_ray.batch.ledger.record import ATTEMPT_FILE, Record, committed_at, plan_head, plan_key, read_record
from xlmr_ray.batch.ledger.small_ids import ShardIds
from xlmr_ray.batch.ledger.snapshot import Head, read_head
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import UserError

RECENT = 600.0  # seconds before a run's last commit over which its rate is taken
LEAST = 60.0  # seconds between commits that tell a rate: at a run's start all encoders commit at once
MOST_RECORDS = 10_000  # records read for their errors


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How far a run is. `planned` shards and `rows` are None where it has no plan. Times are in seconds since the epoch
    by the store's clock; `rate` in rows a second over the `RECENT` time before the last commit, 0 in the first minute.

    `errors` are counted by code (None: not looked at), `dead` are the files not read, with why, and `rows_lost` the
    rows lost with them beside an error row each, counted or `lost_estimated`; `all_errors` is False where there were
    too many errors to look at. `not_read`: files beside the inputs. `driver` holds the lease; one that was killed,
    until it expires.
    """

    run_id: str
    planned: int | None
    done: int
    rows: int | None
    rows_done: int
    rows_error: int
    tokens: int | None
    finished: bool
    published: bool
    in_table: bool
    last_commit: float | None
    rate: float = 0.0
    errors: Mapping[str, int] | None = None
    dead: tuple[tuple[str, str], ...] = ()
    all_errors: bool = True
    rows_lost: int = 0
    lost_estimated: bool = False
    not_read: NotRead | None = None
    driver: Holder | None = None

    @property
    def seconds_left(self) -> float | None:
        """At the present rate. None where the run is finished, or there is no rate."""
        if self.finished or self.rows is None or not self.rate:
            return None
        return max(0, self.rows - self.rows_done) / self.rate


@dataclass(frozen=True, slots=True)
class Published:
    """What readers see: the pointer, and the sums of its table where several runs make it."""

    current: Current
    table: Head | None


def published(store: Store) -> Published | None:
    """What readers see, None where nothing is published. Raises `Damaged`."""
    now = current(store)
    return None if now is None else Published(now, read_head(store, now.run_id))


def status(store: Store, run_id: str | None = None) -> Iterator[RunStatus]:
    """Each run, or the one named: those with a manifest first, in the order of their last commits. Raises `Damaged`,
    UserError where there is no such run.
    """
    names = list(store.folders("_runs/"))
    if run_id is not None and run_id not in names:
        raise UserError(f"{store.url('')}: has no run {run_id}; its runs: {', '.join(names) or 'none'}")
    now = current(store)
    wanted = names if run_id is None else [run_id]
    found = list(in_order(lambda name: (name, read_manifest(store, name)), wanted))
    finished = [(name, manifest) for name, manifest in found if manifest is not None]
    for name, manifest in sorted(finished, key=lambda one: one[1].last_commit):
        in_table = now is not None and name in now.runs
        is_head = now is not None and name == now.run_id
        yield _finished(store, name, manifest, is_head, in_table, look=is_head or run_id is not None)
    for name, missing in found:
        if missing is None:
            yield _unfinished(store, name)


def _finished(
    store: Store, run_id: str, manifest: Manifest, published: bool, in_table: bool, *, look: bool
) -> RunStatus:
    found = _errors(store, run_id) if look and manifest.rows_error else Errors()
    return RunStatus(
        run_id=run_id,
        planned=manifest.shards,
        done=manifest.shards,
        rows=manifest.rows_in + manifest.rows_lost,
        rows_done=manifest.rows_in + manifest.rows_lost,
        rows_error=manifest.rows_error,
        tokens=manifest.tokens,
        finished=True,
        published=published,
        in_table=in_table,
        last_commit=manifest.last_commit if manifest.shards else None,
        errors=found.counts if look else None,
        dead=found.dead,
        all_errors=found.all,
        rows_lost=manifest.rows_lost,
        lost_estimated=manifest.lost_estimated,
        not_read=manifest.not_read,
    )


def _unfinished(store: Store, run_id: str) -> RunStatus:
    held = array("q")  # rows of each shard of the plan
    beside: NotRead | None = None

    def ids(keys: Iterable[str]) -> Iterator[str]:
        for line in (line for key in keys for line in items_of(store, key, "shards")):
            held.append(int(line.get("rows", 1)))  # a file that cannot be read is one row
            yield line["id"]

    planned = True
    try:
        beside = not_read_of(plan_head(store, run_id))
        shards = ShardIds(ids([plan_key(run_id)]))
    except FileNotFoundError:
        planned, shards = False, ShardIds(ids(part_keys(store, run_id)))
    # Listed after the plan is read, so that it has them all.
    rows, times = np.array(held), np.full(len(held), -1.0)
    last, first, done = 0.0, 0.0, 0
    for name, at in committed_at(store, run_id):
        done += 1
        last = max(last, at)
        if (index := shards.index(name)) >= 0:
            times[index] = at
    first = times[times >= max(0.0, last - RECENT)].min(initial=last)
    found = _errors(store, run_id)
    recent = int(rows[times > first].sum())
    return RunStatus(
        run_id=run_id,
        planned=len(held) if planned else None,
        done=done,
        rows=int(rows.sum()) if planned else None,
        rows_done=int(rows[times >= 0].sum()),
        rows_error=sum(found.counts.values()),
        tokens=None,
        finished=False,
        published=False,
        in_table=False,
        last_commit=last if done else None,
        # What was committed at the first moment of the window was done before it.
        rate=recent / (last - first) if last - first >= LEAST else 0.0,
        errors=found.counts,
        dead=found.dead,
        all_errors=found.all,
        rows_lost=found.lost,
        lost_estimated=found.estimated,
        not_read=beside,
        driver=holder(store, run_id),
    )


@dataclass(frozen=True)
class Errors:
    """Error rows by code, most frequent first, the files that were not read and the rows lost with them, and whether
    these are all.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    dead: tuple[tuple[str, str], ...] = ()
    lost: int = 0
    estimated: bool = False
    all: bool = True


def _errors(store: Store, run_id: str) -> Errors:
    """No more than `MOST_RECORDS` records are read."""
    matches = (ATTEMPT_FILE.fullmatch(entry.key.rpartition("/")[2]) for entry in store.list(f"errors/{run_id}/"))
    # Attempts of a shard lie beside each other; one that crashed may have no record.
    shards = (name for name, _ in groupby(match["shard"] for match in matches if match))
    counts: Counter[str] = Counter()
    dead = []
    lost, estimated = 0, False
    record: Record | None
    for record in in_order(lambda name: read_record(store, run_id, name), islice(shards, MOST_RECORDS)):
        if record is None:
            continue
        counts.update(dict(record.errors))
        lost += record.rows_lost
        estimated |= record.lost_estimated
        if not record.rows_ok and not any(file.key.startswith("data/") for file in record.files):
            dead.append((record.source_key, record.errors[0][0]))
    return Errors(dict(counts.most_common()), tuple(dead), lost, estimated, next(shards, None) is None)
