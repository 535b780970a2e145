"""Spans of OpenTelemetry, where its API is installed and set up; nothing at all where it is not."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace

    THERE = True
except ImportError:  # the extra `tracing` is not installed
    THERE = False

log = logging.getLogger(__name__)

# OpenTelemetry's own variables for the collector that spans go to, by OTLP over HTTP.
COLLECTOR = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def export_spans() -> None:
    """From now on spans of this process go to the collector that the environment names, in batches. Nothing changes
    where it names none, or where they have been set up already.
    """
    named = next((name for name in COLLECTOR if os.environ.get(name)), None)
    if named is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("%s is set, and no spans are sent: install the extra xlmr-ray[tracing]", named)
        return
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    service = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "xlmr-ray")}
    provider = TracerProvider(resource=Resource.create(service))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def request_span(name: str, headers: Mapping[str, str], **facts: str | int) -> Iterator[str | None]:
    """The span of a request, under the caller's `traceparent`; gives the trace's id in hex, None without one."""
    if not THERE:
        yield None
        return
    tracer, parent = trace.get_tracer("xlmr_ray.serve"), propagate.extract(headers)
    with tracer.start_as_current_span(
        name, context=parent, kind=trace.SpanKind.SERVER, attributes=facts, record_exception=False
    ) as current:
        context = current.get_span_context()
        yield f"{context.trace_id:032x}" if context.is_valid else None


@contextmanager
def span(name: str, **facts: str | int) -> Iterator[None]:
    """A step of the request that runs. `facts` never hold a text."""
    if not THERE:
        yield
        return
    tracer: Any = trace.get_tracer("xlmr_ray.serve")
    with tracer.start_as_current_span(name, attributes=facts, record_exception=False):
        yield


def note(**facts: str | int) -> None:
    """Facts for the span that runs."""
    if THERE:
        trace.get_current_span().set_attributes(facts)
