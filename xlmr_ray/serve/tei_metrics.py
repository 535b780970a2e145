"""The service's numbers under text-embeddings-inference's names, so that its users' dashboards go on: made of ours when
`/metrics` is asked for. No number is counted twice.
"""

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from itertools import chain

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, UnknownMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from xlmr_ray.serve.keys import PUBLIC
from xlmr_ray.serve.metrics import (
    BATCH_SEQUENCES,
    BATCH_TOKENS,
    FAILURES,
    INFERENCE,
    INPUTS,
    LATENCY,
    QUEUE,
    QUEUE_REQUESTS,
    REQUESTS,
    TOKENIZE,
    ServiceMetric,
)

Made = Mapping[str, Counter | Gauge | Histogram]
HISTOGRAMS = {
    "te_request_duration": LATENCY,
    "te_request_tokenization_duration": TOKENIZE,
    "te_request_queue_duration": QUEUE,
    "te_request_inference_duration": INFERENCE,
    "te_batch_next_size": BATCH_SEQUENCES,
    "te_batch_next_tokens": BATCH_TOKENS,
}
# Inputs of a kind of model.
TASKS = {"te_embed_count": ("embedding", "sparse"), "te_predict_count": ("text-classification", "rerank")}


class TeiNames(Collector):
    """`made`: our metrics by name. Of TEI's labels there is only `err`, with our kinds of failure."""

    def __init__(self, made: Made) -> None:
        self.made = made

    def collect(self) -> Iterator[Family]:
        ended = self.values(REQUESTS, "route", "status")
        asked = {labels: value for labels, value in ended.items() if labels[0] not in PUBLIC}
        yield untyped("te_request_count", "requests", sum(asked.values()))
        right = sum(value for (_, status), value in asked.items() if status < "400")
        yield untyped("te_request_success", "requests that were answered", right)
        failures = UnknownMetricFamily("te_request_failure", "requests that ended badly", labels=["err"])
        for (kind,), value in self.values(FAILURES, "kind").items():
            failures.add_metric([kind], value)
        yield failures
        inputs = self.values(INPUTS, "task")
        for name, tasks in TASKS.items():
            yield untyped(name, "inputs answered", sum(inputs[task,] for task in tasks))
        waiting = GaugeMetricFamily("te_queue_size", "requests that wait")
        waiting.add_metric([], sum(self.values(QUEUE_REQUESTS).values()))
        yield waiting
        for name, metric in HISTOGRAMS.items():
            yield self.histogram(name, metric)

    def values(self, metric: ServiceMetric, *labels: str) -> Tally[tuple[str, ...]]:
        """The metric's values by these labels, summed over the others."""
        found: Tally[tuple[str, ...]] = Tally()
        for sample in chain.from_iterable(family.samples for family in self.made[metric.name].collect()):
            if not sample.name.endswith("_created"):
                found[tuple(sample.labels[label] for label in labels)] += sample.value  # type: ignore[assignment]
        return found

    def histogram(self, name: str, metric: ServiceMetric) -> Family:
        """The metric under another name, summed over its labels; without requests for health and metrics."""
        buckets: Tally[str] = Tally()
        total = 0.0
        for sample in chain.from_iterable(family.samples for family in self.made[metric.name].collect()):
            if sample.labels.get("route") in PUBLIC:
                continue
            if sample.name.endswith("_bucket"):
                buckets[sample.labels["le"]] += sample.value  # type: ignore[assignment]
            elif sample.name.endswith("_sum"):
                total += sample.value
        counts = sorted(buckets.items(), key=lambda one: float(one[0])) or [("+Inf", 0)]
        family = HistogramMetricFamily(name, metric.help)
        family.add_metric([], buckets=[(le, float(count)) for le, count in counts], sum_value=total)
        return family


def untyped(name: str, help: str, value: float) -> Family:
    """A counter whose name does not end in `_total`, as this format wants it."""
    family = UnknownMetricFamily(name, help)
    family.add_metric([], value)
    return family
