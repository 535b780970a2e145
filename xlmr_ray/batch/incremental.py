"""Incremental runs: each scores what the published table has not, and is planned upon the run before it.

A run's id is the hash of the job's identity (not its inputs) and of the run that it comes *after*, the published one.
So two launches at once, and a launch on the day after a crash, mean the same run: the first one's plan holds, whatever
the others have listed, and they go on with it. When it is published, a launch that did not plan it looks again for what
is still new; that is the next run, after this one. So the runs of a job are a chain, each input's rows are in the table
by one run only, and the work of an unfinished run is not done again.

An input of an unfinished run that has changed since or is gone cannot be read as planned. What is missing of it is
*withdrawn*: a record without files and without etag is created for each such shard, so that no late attempt commits it.
The table leaves such an input out; in its new form it is new to the next run. A run that was refused for its drift is
planned anew once an input of it has changed or is gone, under another id: all that it committed would be published.

Another model, tokenizer or option is another job: its first run is a full one, and readers see it when it is published.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from xlmr_ray.batch.identity import run_id
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged, InputFile
from xlmr_ray.batch.input.kept_types import KeptTypes
from xlmr_ray.batch.input.planning import SHARD_BYTES
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import INPUT
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.manifest import read_manifest
from xlmr_ray.batch.ledger.published import current, publish, publish_next
from xlmr_ray.batch.ledger.record import Record, committed_shards, new_attempt, record_key
from xlmr_ray.batch.ledger.snapshot import DATA, Step, read_head, read_step, table_files, table_inputs, write_table
from xlmr_ray.batch.observe.drift import read_drift
from xlmr_ray.batch.plan import Plan, read_plan, write_plan
from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed


@dataclass(frozen=True)
class Changes:
    """What is listed now against the table: inputs to score, of which `replaced` had another size or etag; `gone` are
    in the table and not listed; `same` need nothing.
    """

    todo: tuple[InputFile, ...]
    replaced: tuple[str, ...]
    gone: tuple[str, ...]
    same: int
    drop: bool

    @property
    def any(self) -> bool:
        """Whether there is anything to publish."""
        return bool(self.todo) or (self.drop and bool(self.gone))

    def __str__(self) -> str:
        text = f"inputs: {len(self.todo) - len(self.replaced):,} new"
        if self.replaced:
            text += f", {len(self.replaced):,} replaced (their old rows go)"
        text += f", {self.same:,} scored before"
        if self.gone:
            fate = "go" if self.drop else "stay; input.deleted: drop takes them out"
            text += f", {len(self.gone):,} not there any more (their rows {fate})"
        return text


@dataclass(frozen=True)
class Next:
    """The next run of a chain: its plan, None where nothing is new; what it comes `after`; what was found (None where
    the plan is an earlier launch's, which has not seen all that is listed now), and inputs of that plan that have
    changed since.
    """

    job: str
    after: str | None
    plan: Plan | None
    changes: Changes | None
    withdrawn: frozenset[str] = frozenset()


def compare(known: Mapping[str, tuple[int, str]], inputs: Sequence[InputFile], *, drop: bool) -> Changes:
    """What is to be done; `known` are size and etag by key of what the table has."""
    todo = tuple(one for one in inputs if known.get(one.key) != (one.size, one.etag))
    listed = {one.key for one in inputs}
    return Changes(
        todo,
        tuple(one.key for one in todo if one.key in known),
        tuple(sorted(known.keys() - listed)),
        len(inputs) - len(todo),
        drop,
    )


def last_run(store: Store, identity: Mapping[str, Any]) -> str | None:
    """The last published run of the job with this identity."""
    published = current(store)
    return None if published is None else published.heads.get(run_id(identity))


def changes_since(store: Store, after: str | None, inputs: Sequence[InputFile], *, drop: bool) -> Changes:
    """What the table of the run `after` has not."""
    return compare({} if after is None else table_inputs(store, after), inputs, drop=drop)


def limited_inputs(
    store: Store, identity: Mapping[str, Any], inputs: Sequence[InputFile], *, drop: bool
) -> tuple[Sequence[InputFile], Next | None]:
    """What a limited run reads of an incremental job with this identity, which has no limit: the first rows of what the
    table has not, and they are not added to it. Where nothing is new, the `Next` that says so.
    """
    after = last_run(store, identity)
    changes = changes_since(store, after, inputs, drop=drop)
    return changes.todo, None if changes.todo else Next(run_id(identity), after, None, changes)


def plan_next(
    store: Store,
    identity: Mapping[str, Any],
    job: str,
    columns: Columns,
    inputs: Sequence[InputFile],
    *,
    drop: bool,
    shard_rows: int,
    shard_bytes: Callable[[Sequence[InputFile]], int] = lambda inputs: SHARD_BYTES,
    readers: Mapping[str, Reader] = READERS,
    ignored: Sequence[str] = (),
    max_drift: float | None = None,
) -> Next:
    """The run that comes after the published one of the job with this identity: the unfinished one if there is one,
    else what is new. `job` is the job's name; `ignored`: see `write_plan`; `max_drift`: the job's bound. Raises
    UserError where nothing of what is new can be read.
    """
    chain_id = run_id(identity)
    after = last_run(store, identity)
    identity = {**identity, "after": after}
    plan = read_plan(store, name := run_id(identity))
    while plan is not None and (stale := stale_inputs(store, plan, inputs)) and is_refused(store, name, max_drift):
        identity["instead"] = name
        plan = read_plan(store, name := run_id(identity))
    if plan is None:
        changes = changes_since(store, after, inputs, drop=drop)
        if not changes.any:
            return Next(chain_id, after, None, changes)
        step = Step(chain_id, after, changes.replaced, changes.gone if drop else (), 0 if drop else len(changes.gone))
        head = {"run_id": name, "job": job, "identity": identity, "step": asdict(step)}
        kept = None if after is None else kept_types(store, after, columns)
        plan = write_plan(
            store,
            head,
            changes.todo,
            columns,
            shard_rows=shard_rows,
            shard_bytes=shard_bytes(changes.todo),
            readers=readers,
            kept=kept,
            ignored=ignored,
        )
        if tuple(plan.shards.inputs) == changes.todo and read_step(store, name) == step:
            return Next(chain_id, after, plan, changes)
        stale = stale_inputs(store, plan, inputs)
    withdraw(store, plan, stale)
    return Next(chain_id, after, plan, None, stale)


def is_refused(store: Store, name: str, max_drift: float | None) -> bool:
    """Whether what the run has scored is further from what was scored before than this bound."""
    drift = None if max_drift is None else read_drift(store, name)
    return drift is not None and bool(drift.past(max_drift))


def planned(store: Store, found: Next) -> Plan:
    """The plan to run: the next one's; where nothing is new, that of the finished run before, of which nothing is left
    to do.
    """
    if found.plan is not None:
        return found.plan
    plan = None if found.after is None else read_plan(store, found.after)
    if plan is None:
        raise JobFailed(f"{store.url('')}: the plan of the published run {found.after} is missing")
    return plan


def publish_found(
    store: Store, found: Next, *, started: float, merge: Callable[[str], None] = lambda run_id: None
) -> tuple[bool, bool]:
    """Publishes the finished run, or again the one before where nothing is new and readers are elsewhere. `merge` is
    called with the run that will be published, when its table is there.

    Returns whether its rows are what readers see, and whether that is all: if not, look again for what is new.
    """
    if found.plan is not None:
        name = found.plan.run_id
        head = write_table(store, name)
        merge(name)
        runs = head.runs if head else (name,)
        now, published = publish_next(store, name, job=found.job, after=found.after, runs=runs, started=started)
        return published, found.changes is not None and now.heads.get(found.job) == name
    published_now = current(store)
    if found.after is None or (published_now is not None and found.after in published_now.runs):
        return True, True
    head = read_head(store, found.after)
    runs = head.runs if head else (found.after,)
    return publish(store, found.after, started=started, job=found.job, runs=runs)[1], True


def stale_inputs(store: Store, plan: Plan, listed: Sequence[InputFile]) -> frozenset[str]:
    """The keys of the inputs of an unfinished run that changed or are gone.

    An input that is not listed, or listed as another, is looked at: the job may list another folder now, and the plan
    may be younger than the list.
    """
    if read_manifest(store, plan.run_id) is not None:
        return frozenset()
    known = {(one.key, one.size, one.etag) for one in listed}
    doubtful = (one for one in plan.shards.inputs if (one.key, one.size, one.etag) not in known)
    return frozenset(key for key in in_order(_key_if_changed, doubtful) if key is not None)


def withdraw(store: Store, plan: Plan, stale: frozenset[str]) -> None:
    """Gives up what is not committed of these inputs."""
    if stale:
        done = set(committed_shards(store, plan.run_id))
        dead = ((one.id, one.input) for one in plan.dead if one.input.key in stale)
        pieces = chain(dead, ((shard.id, shard.input) for shard in _of(plan, stale)))
        for _ in in_order(lambda piece: _give_up(store, plan.run_id, *piece), (p for p in pieces if p[0] not in done)):
            pass


def kept_types(store: Store, run_id: str, columns: Columns) -> KeptTypes | None:
    """The types of the kept columns in the table, which all that comes to it must have. None where there are no such
    columns, or no file.
    """
    file = next(table_files(store, run_id, DATA), None) if columns.extra else None
    if file is None:
        return None
    with store.open(file.key) as opened:
        schema = pq.read_schema(opened)
    types = {name: (schema.field(name).type, store.url(file.key)) for name in columns.extra}
    return KeptTypes(columns.extra, settled=True, fields=types)


def _of(plan: Plan, sources: frozenset[str]) -> Iterator[Shard]:
    """The shards of these inputs. Only they are made, of a million."""
    indices = [index for index, one in enumerate(plan.shards.inputs) if one.key in sources]
    for at in np.flatnonzero(np.isin(plan.shards.columns[:, INPUT], indices)).tolist():
        yield plan.shards[at]


def _key_if_changed(one: InputFile) -> str | None:
    try:
        Source(one).check()
    except InputChanged:
        return one.key
    return None


def _give_up(store: Store, run_id: str, shard: str, one: InputFile) -> None:
    record = Record(
        run_id=run_id,
        shard=shard,
        attempt=new_attempt(),
        files=(),
        rows_in=0,
        rows_ok=0,
        rows_error=0,
        source_key=one.key,
        source_etag="",
        committed_at=round(time.time(), 3),
    )
    with contextlib.suppress(Exists):  # it was committed meanwhile
        store.create(record_key(run_id, shard), record.to_bytes())
