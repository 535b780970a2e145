"""What a run counts, by name, for Prometheus. No label ever holds a text.

The driver counts each shard by what its actors report: so each row once, whatever was tried twice. Ray
exports the numbers on the driver's node, with `ray_` before the name, which the scrape takes off (infra/monitoring).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

from ray.util import metrics

from xlmr_ray.batch.observe.drift import Drift
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.stages.shard_cost import Committed
from xlmr_ray.batch.store import retry_counter as retries
from xlmr_ray.engine.gpus import peak

# Seconds between two settings of each gauge. Ray's agent forgets one that was not set for two of its exports, so for
# 20 seconds (`OpenTelemetryMetricRecorder` of Ray 2.60), and a run that stands still sets none: its alerts were blind.
REPEAT_S = 5.0
WAITS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True)
class RunMetric:
    """`labels` beside `job_name` and `run`, which all have; `job` is Prometheus' own, for what it scrapes."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


P = "xlmr_ray_batch_"
DOCUMENTS = RunMetric(P + "documents_total", "counter", "rows committed; outcome is ok or error", ("outcome",))
ERRORS = RunMetric(P + "errors_total", "counter", "error rows committed, by code", ("code",))
TOKENS = RunMetric(P + "tokens_total", "counter", "tokens through the encoder")
PADDING = RunMetric(P + "padding_tokens_total", "counter", "tokens computed beyond those")
OPERATIONS = RunMetric(P + "operations_total", "counter", "floating point operations of the encoder")
ENGINE_SECONDS = RunMetric(P + "engine_seconds_total", "counter", "seconds of the encoders, added up")
TOKENIZER_SECONDS = RunMetric(P + "tokenizer_seconds_total", "counter", "seconds of reading and tokenizing, added up")
PEAK = RunMetric(
    P + "peak_operations",
    "gauge",
    "operations a second of an encoder's device; 0 where not known",
    ("device",),
)
SHARDS = RunMetric(P + "shards", "gauge", "shards of the run; state is committed or left", ("state",))
WAIT = RunMetric(P + "wait_seconds", "histogram", "waiting of a shard for a step: encoder or writer", ("step",))
RETRIES = RunMetric(P + "store_retries_total", "counter", "requests to the output's store that were tried again")
LAUNCHED = RunMetric(P + "launch_timestamp_seconds", "gauge", "when the driver was launched")
LAST_COMMIT = RunMetric(
    P + "last_commit_timestamp_seconds", "gauge", "when it last heard of a commit; at first, its launch"
)
DRIFT = RunMetric(
    P + "drift",
    "gauge",
    "how far an incremental run is from what was scored before, at most: the stability index or the share never seen, "
    "over all rows (column empty) or by a kept column; 0 until it is known",
    ("column",),
)

TABLE = (
    DOCUMENTS, ERRORS, TOKENS, PADDING, OPERATIONS, ENGINE_SECONDS, TOKENIZER_SECONDS, PEAK, SHARDS, WAIT, RETRIES,
    LAUNCHED, LAST_COMMIT, DRIFT,
)  # fmt: skip


class RunMetrics:
    """The numbers of one launch of a run, exported until they are closed. Wants a connection to Ray."""

    def __init__(self, *, job: str, run_id: str, figures: Figures) -> None:
        self.labels = {"job_name": job, "run": run_id}
        self.figures = figures
        self.made = {metric.name: ray_metric(metric) for metric in TABLE}
        self.gauges: dict[tuple[RunMetric, tuple[tuple[str, str], ...]], float] = {}
        self.retries = retries.total()
        now = time.time()
        self.set(LAUNCHED, now)
        self.set(LAST_COMMIT, now)
        self.set(DRIFT, 0.0, column="")
        self.progress()
        self.closed = threading.Event()
        threading.Thread(target=self.repeat, name="metrics", daemon=True).start()

    def repeat(self) -> None:
        while not self.closed.wait(REPEAT_S):
            for (metric, labels), value in list(self.gauges.items()):
                self.made[metric.name].set(value, {**self.labels, **dict(labels)})

    def close(self) -> None:
        """Ray forgets the gauges 20 seconds later."""
        self.closed.set()

    def shard(self, done: Committed) -> None:
        """A shard was committed, and `figures` know of it already."""
        record, stats = done.record, done.record.stats
        self.add(DOCUMENTS, record.rows_ok, outcome="ok")
        self.add(DOCUMENTS, record.rows_error, outcome="error")
        for code, count in record.errors:
            self.add(ERRORS, count, code=code)
        self.add(TOKENS, stats.tokens)
        self.add(PADDING, stats.padded)
        self.add(OPERATIONS, stats.operations)
        self.add(ENGINE_SECONDS, stats.engine_seconds)
        self.add(TOKENIZER_SECONDS, done.cost.tokenizer_seconds)
        # This process's own, too: it writes the lease, the plan and the manifest.
        total = retries.total()
        self.add(RETRIES, done.cost.retries + total - self.retries)
        self.retries = total
        self.set(PEAK, peak(stats.device) or 0.0, device=stats.device)
        for step, waited in (("encoder", done.cost.encoder_wait), ("writer", done.cost.writer_wait)):
            self.made[WAIT.name].observe(waited, {**self.labels, "step": step})
        self.set(LAST_COMMIT, time.time())
        self.progress()

    def drift(self, found: Drift) -> None:
        """The largest shift of each column."""
        largest: dict[str, float] = {}
        for one in found.shifts:
            largest[one.column] = max(one.size, largest.get(one.column, 0.0))
        for column, size in largest.items():
            self.set(DRIFT, size, column=column)

    def progress(self) -> None:
        done = self.figures.shards_before + self.figures.shards
        self.set(SHARDS, done, state="committed")
        self.set(SHARDS, self.figures.total_shards - done, state="left")

    def add(self, metric: RunMetric, value: float, **labels: str) -> None:
        if value > 0:  # Ray refuses to add nothing
            self.made[metric.name].inc(value, {**self.labels, **labels})

    def set(self, metric: RunMetric, value: float, **labels: str) -> None:
        self.gauges[metric, tuple(labels.items())] = value
        self.made[metric.name].set(value, {**self.labels, **labels})


def ray_metric(metric: RunMetric) -> Any:
    """The metric, made with Ray, which itself puts `_total` after a counter's name."""
    labels = ("job_name", "run", *metric.labels)
    if metric.kind == "counter":
        return metrics.Counter(metric.name.removesuffix("_total"), metric.help, labels)
    if metric.kind == "gauge":
        return metrics.Gauge(metric.name, metric.help, labels)
    return metrics.Histogram(metric.name, metric.help, list(WAITS), labels)
