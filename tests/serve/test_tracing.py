"""Spans as a collector gets them: under the caller's `traceparent`, and without any text."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from xlmr_ray.serve import tracing
from xlmr_ray.serve.app import build_app

SECRET = "a text that no collector may read"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector():
    """A collector of OTLP over HTTP: where it is, and the bodies that it got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/traces"
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()


@pytest.fixture
def provider(monkeypatch):
    """What `export_spans` sets up, only for this test: OpenTelemetry's own is for good."""
    made = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(trace, "get_tracer", lambda name: made[0].get_tracer(name))
    yield made
    for one in made:
        one.shutdown()


def test_nothing_without_a_collector(monkeypatch, provider):
    for name in tracing.COLLECTOR:
        monkeypatch.delenv(name, raising=False)
    tracing.export_spans()
    assert provider == []


def test_a_request_in_its_callers_trace(monkeypatch, service, collector, provider):
    url, got = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    tracing.export_spans()

    async def go():
        transport = httpx.ASGITransport(build_app(service, service.settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
            fine = await client.post("/embed", json={"inputs": SECRET}, headers=headers)
            wrong = await client.post("/embed", json={"inputs": [SECRET, 3]}, headers=headers)
            return fine.status_code, wrong.status_code

    assert asyncio.run(go()) == (200, 422)
    assert provider[0].force_flush()
    assert all(SECRET.encode() not in body for body in got)
    resources = [each for body in got for each in ExportTraceServiceRequest.FromString(body).resource_spans]
    assert {"xlmr-ray"} == {
        one.value.string_value for each in resources for one in each.resource.attributes if one.key == "service.name"
    }
    spans = [span for each in resources for scope in each.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    requests = [span for span in spans if span.name == "POST /embed"]
    assert [span.parent_span_id.hex() for span in requests] == [CALLER, CALLER]
    statuses = {
        one.value.int_value: span for span in requests for one in span.attributes if one.key.endswith("status_code")
    }
    assert statuses.keys() == {200, 422}
    steps = {span.name: span for span in spans if span.parent_span_id == statuses[200].span_id}
    assert steps.keys() == {"tokenize", "inference"}
    facts = {one.key: one.value for one in steps["inference"].attributes}
    assert (facts["task"].string_value, facts["tokens"].int_value > 0) == ("embedding", True)
