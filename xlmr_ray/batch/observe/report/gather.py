"""A run's report as data: from its plan, launches, records and, for positions of errors, a few error files.

Nothing of the rows is read: the records carry their counts. What is held grows with the number of shards by 24 bytes.
"""

from __future__ import annotations

import io
import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from xlmr_ray.batch.codes import CATALOGUE
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.manifest import NotRead, not_read_of, read_manifest
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import plan_head, planned_shards
from xlmr_ray.batch.observe.drift import Drift, drift_as_json, read_drift
from xlmr_ray.batch.observe.launches import Launch, launches
from xlmr_ray.batch.observe.report.counts import Summary
from xlmr_ray.batch.store.base import Store
from xlmr_ray.engine.gpus import peak
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import clean_url

Floats = NDArray[np.float64]

VERSION = 1
MOMENTS = 60  # points of time at most
EXAMPLES = 5  # positions a code
ERROR_FILES = 20  # read at most, to find these


@dataclass(frozen=True)
class TaskOfRun:
    """`model` as the job names it; `weights` and `tokenizer` are digests."""

    name: str
    task: str
    model: str
    weights: str
    tokenizer: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """What was committed in a stretch of time. `start` is in seconds at work since the run's start, pauses between
    launches left out.
    """

    start: float
    seconds: float
    rows: int
    tokens: int


@dataclass(frozen=True)
class Error:
    """`examples` are positions: source and row."""

    code: str
    meaning: str
    rows: int
    examples: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Device:
    """What one kind of device did. Seconds are those of its encoders, added up; `peak` in operations a second."""

    name: str
    hosts: int
    shards: int
    tokens: int
    seconds: float
    operations: float
    peak: float | None

    @property
    def utilization(self) -> float | None:
        """The share of the peak that went into the model's own arithmetic (MFU)."""
        return self.operations / self.seconds / self.peak if self.peak and self.seconds else None


@dataclass
class RunReport:
    """`state`: published, finished or unfinished. `active` seconds are those at work: from a launch to its first shard,
    and while a shard was under way. The cost is these times the price an hour of all machines together.
    """

    run_id: str
    name: str
    state: str
    made: float
    tasks: tuple[TaskOfRun, ...]
    launches: tuple[Launch, ...]
    planned: int | None
    shards: int = 0
    sources: int = 0
    rows: int = 0
    rows_ok: int = 0
    rows_error: int = 0
    rows_lost: int = 0
    lost_estimated: bool = False
    not_read: NotRead | None = None
    tokens: int = 0
    padded: int = 0
    repeated: int = 0
    reused: int = 0
    bytes: int = 0
    started: float = 0.0
    ended: float = 0.0
    active: float = 0.0
    price: float | None = None
    currency: str = "USD"
    moments: tuple[Moment, ...] = ()
    errors: tuple[Error, ...] = ()
    devices: tuple[Device, ...] = ()
    summary: Summary = field(default_factory=Summary)
    drift: Drift | None = None

    @property
    def padding(self) -> float:
        return self.padded / max(1, self.padded + self.tokens)

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.price * self.active / 3600

    @property
    def job(self) -> dict[str, Any] | None:
        """The job file of the last launch."""
        return self.launches[-1].job if self.launches else None

    def to_json(self) -> dict[str, Any]:
        """`report.json`: the fields, and what is computed from them."""
        content = {"version": VERSION, **asdict(self)}
        content["summary"] = self.summary.to_json()
        content["drift"] = None if self.drift is None else drift_as_json(self.drift)
        content["padding"], content["cost"] = self.padding, self.cost
        for one, device in zip(content["devices"], self.devices, strict=True):
            one["utilization"] = device.utilization
        return content


def gather_report(store: Store, run_id: str | None = None, *, price: float | None = None) -> RunReport:
    """The report of a run, the published one where none is named, as far as it is. Raises UserError where there is no
    such run, `Damaged`.

    `price` an hour is that of the job file where not given.
    """
    published = current(store)
    if run_id is None:
        if published is None:
            runs = ", ".join(store.folders("_runs/")) or "none"
            raise UserError(f"{store.url('')}: nothing is published there yet; name one of its runs: {runs}")
        run_id = published.run_id
    try:
        head = plan_head(store, run_id)
    except FileNotFoundError:
        runs = ", ".join(store.folders("_runs/")) or "none"
        raise UserError(f"{store.url('')}: has no run {run_id}; its runs: {runs}") from None
    done = read_manifest(store, run_id) is not None
    in_table = published is not None and run_id in (published.run_id, *published.runs)
    state = "unfinished" if not done else "published" if in_table else "finished"
    started = tuple(launches(store, run_id))
    models = model_names(started[-1].job if started else {})
    report = RunReport(
        run_id,
        str(head.get("job", "")),
        state,
        round(time.time(), 3),
        tuple(task_of(task, models) for task in head.get("identity", {}).get("tasks", [])),
        started,
        None if done else sum(1 for _ in planned_shards(store, run_id)),
        not_read=not_read_of(head),
        drift=read_drift(store, run_id),
    )
    settings = (report.job or {}).get("report") or {}
    report.price = settings.get("price_per_hour") if price is None else price
    report.currency = settings.get("currency") or report.currency
    add_records(report, store)
    return report


def model_names(job: dict[str, Any]) -> dict[str, str]:
    """The models by the names of their tasks, as the job file names them."""
    return {
        task.get("name") or task["task"]: task.get("model") or job.get("model", "") for task in job.get("tasks", [])
    }


def task_of(task: dict[str, Any], models: dict[str, str]) -> TaskOfRun:
    named = {name.replace("-", "_") + "_": name for name in models}
    name = named.get(task["prefix"], task["task"])
    return TaskOfRun(name, task["task"], models.get(name, ""), task["weights"], task["tokenizer"], task["options"])


def add_records(report: RunReport, store: Store) -> None:
    """What the records say, added up."""
    times, rows, tokens, seconds = (array("d") for _ in range(4))
    codes: Counter[str] = Counter()
    wanted: dict[str, int] = {}  # examples that are still to be found of a code
    files: list[str] = []
    work: dict[str, Any] = {}  # by device: shards, tokens, seconds, operations
    hosts: dict[str, set[str]] = {}
    source = ""
    for record in committed(store, report.run_id):
        stats = record.stats
        report.shards += 1
        report.sources += record.source_key != source
        source = record.source_key
        report.rows += record.rows_in
        report.rows_ok += record.rows_ok
        report.rows_error += record.rows_error
        report.rows_lost += record.rows_lost
        report.lost_estimated |= record.lost_estimated
        report.tokens += stats.tokens
        report.padded += stats.padded
        report.repeated += stats.repeated
        report.reused += stats.reused
        report.bytes += sum(file.bytes for file in record.files)
        if stats.seconds:
            figures = (record.committed_at, record.rows_in, stats.tokens, stats.seconds)
            for column, value in zip((times, rows, tokens, seconds), figures, strict=True):
                column.append(value)
        codes.update(dict(record.errors))
        fresh = [code for code, _ in record.errors if wanted.get(code, EXAMPLES) > 0]
        if fresh and len(files) < ERROR_FILES:
            files += [file.key for file in record.files if file.key.startswith("errors/")]
            for code, count in record.errors:
                wanted[code] = wanted.get(code, EXAMPLES) - count
        if stats.device:
            done = np.array([1, stats.tokens, stats.engine_seconds, stats.operations])
            work[stats.device] = work.get(stats.device, 0.0) + done
            hosts.setdefault(stats.device, set()).add(stats.host)
        if stats.summary:
            report.summary.add(Summary.from_json(stats.summary))
    if len(times):
        ends = np.frombuffer(times)
        work_time = at_work(ends - np.frombuffer(seconds), ends, [launch.started for launch in report.launches])
        report.started, report.ended = work_time.started, float(ends.max())
        report.active = work_time.seconds
        report.moments = moments(work_time.since(ends), np.frombuffer(rows), np.frombuffer(tokens), report.active)
    report.errors = error_counts(store, codes, files)
    report.devices = tuple(
        Device(name, len(hosts[name]), int(shards), int(of), float(spent), float(operations), peak(name))
        for name, (shards, of, spent, operations) in sorted(work.items())
    )


@dataclass(frozen=True)
class AtWork:
    """Stretches of time in which something was under way, in order and apart: `starts` and `ends` since the epoch."""

    starts: Floats
    ends: Floats

    @property
    def started(self) -> float:
        return float(self.starts[0])

    @property
    def seconds(self) -> float:
        return float((self.ends - self.starts).sum())

    def since(self, times: Floats) -> Floats:
        """Seconds at work from the start to each of the times."""
        before = np.concatenate([[0.0], np.cumsum(self.ends - self.starts)])
        index = np.searchsorted(self.starts, times, side="right") - 1
        return before[index] + np.minimum(times, self.ends[index]) - self.starts[index]


def at_work(starts: Floats, ends: Floats, launched: Sequence[float]) -> AtWork:
    """The shards' stretches joined, each launch's way to its first shard with them."""
    for launch in launched:
        later = starts[starts >= launch]
        if len(later):
            starts, ends = np.append(starts, launch), np.append(ends, later.min())
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    first = np.concatenate([[True], starts[1:] > reached[:-1]])
    last = np.concatenate([first[1:], [True]])
    return AtWork(starts[first], reached[last])


def moments(times: Floats, rows: Floats, tokens: Floats, seconds: float) -> tuple[Moment, ...]:
    """Rows and tokens by the time of their commit, in equal stretches: fewer where there are few commits."""
    count = max(1, min(MOMENTS, math.isqrt(4 * len(times))))
    width = max(seconds, 1e-3) / count
    stretches = np.minimum((times / width).astype(int), count - 1)
    by_rows, by_tokens = (np.bincount(stretches, weights, count) for weights in (rows, tokens))
    return tuple(Moment(round(i * width, 3), round(width, 3), int(by_rows[i]), int(by_tokens[i])) for i in range(count))


def error_counts(store: Store, codes: Counter[str], files: list[str]) -> tuple[Error, ...]:
    """Codes, those most often there first, each with the first positions found in the files."""
    found: dict[str, list[tuple[str, int]]] = {code: [] for code in codes}
    for key in files:
        try:
            table = pq.read_table(io.BytesIO(store.get(key)[0]), columns=["source", "row", "code"])
        except (FileNotFoundError, pa.ArrowException):
            continue  # `verify` tells what is damaged
        for source, row, code in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if code in found and len(found[code]) < EXAMPLES:
                found[code].append((clean_url(source), row))
    return tuple(
        Error(code, CATALOGUE[code].meaning if code in CATALOGUE else "", rows, tuple(found[code]))
        for code, rows in codes.most_common()
    )
