"""Spans of OpenTelemetry, where its API is installed and set up; nothing at all where it is not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace

    THERE = True
except ImportError:  # the extra `tracing` is not installed
    THERE = False


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
