"""What a service counts, by name, for Prometheus. No label ever holds a text.

`/metrics` tells one process's numbers. Ray Serve runs several: there each number is also given to Ray's own metrics,
which every node exports, with `ray_` before the name and the replica beside the labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.queue.batcher import BatchStats

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = (16.0, 64.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0, 65536.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class ServiceMetric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


P = "xlmr_ray_serve_"
REQUESTS = ServiceMetric(P + "requests_total", "counter", "HTTP requests that ended", ("route", "status"))
FAILURES = ServiceMetric(
    P + "failures_total", "counter", "requests that ended badly, by the kind of failure", ("kind",)
)
LATENCY = ServiceMetric(
    P + "request_seconds", "histogram", "a request from its first byte to its last", ("route",), SECONDS
)
IN_FLIGHT = ServiceMetric(P + "in_flight_requests", "gauge", "requests that are being answered")
INPUTS = ServiceMetric(P + "inputs_total", "counter", "documents answered", ("task", "model"))
TASK_TOKENS = ServiceMetric(P + "tokens_total", "counter", "tokens of answers", ("task", "model"))
KNOWN = ServiceMetric(
    P + "known_sequences_total",
    "counter",
    "sequences whose results had been kept",
    ("task", "model"),
)
REPEATED = ServiceMetric(
    P + "repeated_sequences_total", "counter", "sequences equal to another one of their request", ("task", "model")
)
CACHE_BYTES = ServiceMetric(P + "cache_bytes", "gauge", "bytes of results that are kept")
CACHE_RESULTS = ServiceMetric(P + "cache_results", "gauge", "results that are kept")
TOKENIZE = ServiceMetric(P + "tokenize_seconds", "histogram", "tokenizing and checking", ("task", "model"), SECONDS)
QUEUE = ServiceMetric(P + "queue_seconds", "histogram", "waiting for the engine", ("task", "model"), SECONDS)
INFERENCE = ServiceMetric(
    P + "inference_seconds", "histogram", "first batch to last result", ("task", "model"), SECONDS
)
QUEUE_REQUESTS = ServiceMetric(P + "queue_requests", "gauge", "requests that wait for the engine", ("engine",))
QUEUE_TOKENS = ServiceMetric(P + "queue_tokens", "gauge", "tokens that wait or are computed", ("engine",))
BATCHES = ServiceMetric(P + "batch_seconds", "histogram", "a forward pass with its heads", ("engine",), SECONDS)
BATCH_TOKENS = ServiceMetric(P + "batch_tokens", "histogram", "tokens in a batch", ("engine",), TOKENS)
FEW = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
BATCH_REQUESTS = ServiceMetric(P + "batch_requests", "histogram", "requests in a batch", ("engine",), FEW)
BATCH_SEQUENCES = ServiceMetric(
    P + "batch_sequences", "histogram", "sequences in a batch", ("engine",), (*FEW, 256.0, 512.0)
)
COMPUTED = ServiceMetric(P + "computed_tokens_total", "counter", "tokens of sequences through the encoder", ("engine",))
PADDING = ServiceMetric(P + "padding_tokens_total", "counter", "tokens computed beyond those", ("engine",))
READY = ServiceMetric(P + "ready", "gauge", "1 where the models are loaded and warm")
HEALTHY = ServiceMetric(P + "healthy", "gauge", "1 where no engine hangs or is broken")
MODEL = ServiceMetric(P + "model_info", "gauge", "1 for each model that is resident", ("model", "digest", "dtype"))

TABLE = (
    REQUESTS, FAILURES, LATENCY, IN_FLIGHT, INPUTS, TASK_TOKENS, TOKENIZE, QUEUE, INFERENCE, QUEUE_REQUESTS,
    QUEUE_TOKENS, BATCHES, BATCH_TOKENS, BATCH_REQUESTS, BATCH_SEQUENCES, COMPUTED, PADDING, READY, HEALTHY, MODEL,
    KNOWN, REPEATED, CACHE_BYTES, CACHE_RESULTS,
)  # fmt: skip


class Mirror(Protocol):
    """Another place to which every number goes: `value` is added to a counter, set in a gauge, observed else."""

    def __call__(self, metric: ServiceMetric, labels: tuple[str, ...], value: float) -> None: ...


class Metrics:
    """The numbers of one service, in a separate registry."""

    def __init__(self, mirror: Mirror | None = None) -> None:
        self.registry = CollectorRegistry()
        self.mirror = mirror
        self.made: dict[str, Counter | Gauge | Histogram] = {}
        for metric in TABLE:
            if metric.kind == "histogram":
                self.made[metric.name] = Histogram(
                    metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry
                )
            else:
                kind = Counter if metric.kind == "counter" else Gauge
                self.made[metric.name] = kind(metric.name, metric.help, metric.labels, registry=self.registry)

    def tell(self, metric: ServiceMetric, value: float, *labels: str) -> None:
        made = self.made[metric.name]
        one = made.labels(*labels) if labels else made
        if isinstance(one, Counter):
            one.inc(value)
        elif isinstance(one, Gauge):
            one.set(value)
        else:
            one.observe(value)
        if self.mirror is not None:
            self.mirror(metric, labels, value)

    def answered(self, task: str, model: str, answer: Answer) -> None:
        """An answer of a service."""
        self.tell(INPUTS, answer.table.num_rows, task, model)
        self.tell(TASK_TOKENS, answer.tokens, task, model)
        self.tell(KNOWN, answer.known, task, model)
        self.tell(REPEATED, answer.repeated, task, model)
        for metric, value in ((TOKENIZE, answer.tokenize_s), (QUEUE, answer.queue_s), (INFERENCE, answer.inference_s)):
            self.tell(metric, value, task, model)

    def batch(self, engine: str, stats: BatchStats) -> None:
        """A batch of an engine."""
        self.tell(BATCHES, stats.seconds, engine)
        self.tell(BATCH_TOKENS, stats.tokens, engine)
        self.tell(BATCH_REQUESTS, stats.requests, engine)
        self.tell(BATCH_SEQUENCES, stats.sequences, engine)
        self.tell(COMPUTED, stats.tokens, engine)
        self.tell(PADDING, stats.padded, engine)

    def forget(self, gauge: ServiceMetric) -> None:
        """Of a gauge, all labels that it had."""
        made = self.made[gauge.name]
        assert isinstance(made, Gauge)
        made.clear()

    def text(self) -> bytes:
        """In Prometheus' text format."""
        page: Callable[[CollectorRegistry], bytes] = generate_latest
        return page(self.registry)
