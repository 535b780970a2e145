"""What every route shares: ids, keys, limits of bodies and of requests at once, health, metrics, the log."""

import asyncio
import json
import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.logs import JsonFormatter
from xlmr_ray.serve.settings import CorsSection, KeysSection

SECRET = "a text that nobody else may read"


@pytest.fixture
def app(service, monkeypatch):
    """The application, and a way to change its settings for one test."""

    def with_settings(**changes):
        limits = service.settings.limits.model_copy(update=changes.pop("limits", {}))
        monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"limits": limits, **changes}))
        return build_app(service, service.settings)

    return with_settings


def call(app, *requests):
    """The responses to requests that are made at once, each `(method, path, arguments)`."""

    async def go():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as client:
            made = (client.request(method, f"http://test{path}", **more) for method, path, more in requests)
            return await asyncio.gather(*made)

    return asyncio.run(go())


def one(app, path="/embed", method="POST", **more):
    return call(app, (method, path, more))[0]


def test_ids_go_in_and_out(app):
    made = app()
    given = one(made, json={"inputs": "a"}, headers={"x-request-id": "my-id"})
    assert given.status_code == 200
    assert given.headers["x-request-id"] == "my-id"
    for odd in ("with space", "ü".encode(), "x" * 200):
        assert len(one(made, json={"inputs": "a"}, headers={"x-request-id": odd}).headers["x-request-id"]) == 32


def test_only_health_and_metrics_are_public(app, tmp_path):
    (tmp_path / "keys").write_text("one\ntwo\n")
    made = app(keys=KeysSection(file=str(tmp_path / "keys")))
    for path in ("/health", "/ready", "/metrics"):
        assert one(made, path, "GET").status_code == 200
    for method, path in (
        ("POST", "/embed"),
        ("GET", "/openapi.json"),
        ("GET", "/info"),
        ("GET", "/nothing"),
        ("POST", "/"),
    ):
        response = one(made, path, method)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
    for key in ("one", "two"):
        assert one(made, json={"inputs": "a"}, headers={"authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/page/page.js", "/openapi.json", "/v1/models"])
def test_head_is_get_without_the_body(app, path):
    made = app()
    get, head = one(made, path, "GET"), one(made, path, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_head_needs_a_key_where_get_does(app, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    made = app(keys=KeysSection(file=str(tmp_path / "keys")))
    assert [one(made, path, "HEAD").status_code for path in ("/health", "/", "/info")] == [200, 200, 401]


@pytest.mark.parametrize("path", ["/embed/", "//embed", "///embed//", "/v1/embeddings/", "//v1//embeddings"])
def test_slashes_too_many_are_no_other_path(app, tmp_path, path):
    """A base URL that ends in a slash: no redirect, which would lose TLS behind a proxy; and keys are asked for."""
    body = {"input": "a"} if "v1" in path else {"inputs": "a"}
    assert (
        one(app(), path, json=body).json()
        == one(app(), "/v1/embeddings" if "v1" in path else "/embed", json=body).json()
    )
    assert one(app(), "/embedd/", json=body).status_code == 404
    (tmp_path / "keys").write_text("secret")
    assert one(app(keys=KeysSection(file=str(tmp_path / "keys"))), path, json=body).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("HEAD", "/embed", "POST"),
        ("GET", "/v1/embeddings", "POST"),
        ("DELETE", "/", "GET, HEAD, POST"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models/a", "GET, HEAD"),
        ("PUT", "/tasks/embedding/info", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_405_says_what_is_allowed(app, method, path, allow):
    response = one(app(), path, method)
    assert (response.status_code, response.headers["allow"]) == (405, allow)
    if method != "HEAD":
        assert allow in response.text


def test_bodies_that_are_too_large_or_no_json(app):
    made = app(limits={"body_bytes": 1000})

    async def chunks():
        for _ in range(100):
            yield b" " * 100

    assert one(made, content=b" " * 1001).status_code == 413
    assert one(made, content=chunks()).status_code == 413
    assert one(made, json={"inputs": "many words " * 80}).status_code == 200
    form = one(made, content=b"inputs=a", headers={"content-type": "application/x-www-form-urlencoded"})
    assert form.status_code == 415
    packed = one(made, content=b"{}", headers={"content-type": "application/json", "content-encoding": "gzip"})
    assert packed.status_code == 415
    bare = one(made, content=b'{"inputs": "a"}')  # without a content type
    assert bare.status_code == 200


def test_more_at_once_than_are_allowed(app):
    made = app(limits={"concurrent_requests": 4})
    responses = call(made, *[("POST", "/embed", {"json": {"inputs": "many words " * 40}})] * 30)
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 4
    assert all(int(r.headers["retry-after"]) >= 1 for r in responses if r.status_code == 429)
    assert one(made, json={"inputs": "a"}).status_code == 200


def test_a_request_that_takes_too_long(app, service, monkeypatch):
    made = app(limits={"request_s": 0.2})
    queue = service.find("embedding").queue
    with queue.changed:  # the engine cannot take anything
        response = None

        async def go():
            nonlocal response
            monkeypatch.setattr("xlmr_ray.serve.service.admit", lambda *_, **__: None)
            monkeypatch.setattr(queue, "submit", lambda ticket: asyncio.sleep(10))
            monkeypatch.setattr(queue.door, "enter", lambda: True)
            monkeypatch.setattr(queue.door, "leave", lambda: None)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(made)) as client:
                response = await client.post("http://test/embed", json={"inputs": "a"})

        asyncio.run(go())
    assert response.status_code == 408


def test_our_own_mistakes_tell_nothing(app, service, monkeypatch, caplog):
    made = app()

    async def broken(*_, **__):
        raise ValueError(SECRET)

    monkeypatch.setattr(service, "answer", broken)
    response = one(made, json={"inputs": SECRET})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert SECRET not in response.text
    assert SECRET not in caplog.text
    assert "ValueError" in caplog.text


def test_the_log_has_a_line_a_request_and_no_text(app, caplog):
    made = app()
    with caplog.at_level(logging.INFO, "xlmr_ray"):
        one(made, json={"inputs": SECRET}, headers={"x-request-id": "seven"})
        one(made, json={"inputs": [SECRET, 3]})
        one(made, f"/{SECRET.replace(' ', '-')}")
        one(made, "/health", "GET")
    lines = [json.loads(JsonFormatter().format(r)) for r in caplog.records if r.name == "xlmr_ray.serve.access"]
    assert [(line["route"], line["status"]) for line in lines] == [("/embed", 200), ("/embed", 422), ("none", 404)]
    assert lines[0]["request_id"] == "seven"
    assert lines[0]["task"] == "embedding"
    assert lines[0]["tokens"] > 3
    assert SECRET not in caplog.text
    assert "nobody-else" not in caplog.text


def test_metrics_count_requests_and_failures(app, service):
    made, value = app(), service.metrics.registry.get_sample_value

    def count(name, **labels):
        return value(f"xlmr_ray_serve_{name}", labels) or 0

    before = count("requests_total", route="/embed", status="200"), count("failures_total", kind="invalid")
    one(made, json={"inputs": "a"})
    one(made, json={"inputs": 3})
    after = count("requests_total", route="/embed", status="200"), count("failures_total", kind="invalid")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    page = one(made, "/metrics", "GET").text
    for name in (
        "ready 1.0",
        "healthy 1.0",
        "in_flight_requests",
        "queue_tokens",
        "padding_tokens_total",
        "tokenize_seconds",
    ):
        assert f"xlmr_ray_serve_{name}" in page


def test_metrics_have_teis_names_too(app, service):
    made = app()

    def values():
        page = one(made, "/metrics", "GET").text
        families = {family.name: family for family in text_string_to_metric_families(page)}
        return {name: {s.name + str(s.labels or ""): s.value for s in f.samples} for name, f in families.items()}

    before = values()
    one(made, json={"inputs": ["a", "b"]})
    one(made, "/predict?model=script", json={"inputs": "a"})
    one(made, json={"inputs": 3})
    after = values()

    def more(name, sample=None):
        return after[name][sample or name] - before[name].get(sample or name, 0)

    assert more("te_request_count") == 3
    assert more("te_request_success") == 2
    assert more("te_request_failure", "te_request_failure{'err': 'invalid'}") == 1
    assert (more("te_embed_count"), more("te_predict_count")) == (2, 1)
    assert more("te_request_duration", "te_request_duration_count") == 3
    for name in ("tokenization", "queue", "inference"):
        family = f"te_request_{name}_duration"
        assert more(family, f"{family}_count") == more(family, f"{family}_bucket{{'le': '+Inf'}}") == 2
    assert more("te_batch_next_size", "te_batch_next_size_sum") == 3
    assert more("te_batch_next_tokens", "te_batch_next_tokens_sum") > 6
    assert after["te_queue_size"] == {"te_queue_size": 0}


def test_browsers_may_ask_where_the_settings_say_so(app, tmp_path):
    (tmp_path / "keys").write_text("one\n")
    asks = {"origin": "https://page.org", "access-control-request-method": "POST"}
    preflight = {**asks, "access-control-request-headers": "authorization,content-type"}
    closed = app()
    assert one(closed, "/embed", "OPTIONS", headers=preflight).status_code == 405
    assert "access-control-allow-origin" not in one(closed, json={"inputs": "a"}, headers=asks).headers
    keys = KeysSection(file=str(tmp_path / "keys"))
    open_ = app(cors=CorsSection(origins=["https://page.org"]), keys=keys)
    allowed = one(open_, "/embed", "OPTIONS", headers=preflight)
    assert allowed.status_code == 200
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert one(open_, "/embed", "OPTIONS", headers={**preflight, "origin": "https://other.org"}).status_code == 400
    for key, status in (("one", 200), ("two", 401)):
        answer = one(open_, json={"inputs": "a"}, headers={**asks, "authorization": f"Bearer {key}"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://page.org"
        assert "x-truncated" in answer.headers["access-control-expose-headers"]


def test_health_fails_when_the_engine_hangs(app, service, monkeypatch):
    made = app()
    monkeypatch.setattr(service.resident.queues[0], "computing", (0.0, 10))
    response = one(made, "/health", "GET")
    assert response.status_code == 503
    assert "a forward pass has taken" in response.json()["status"]


def test_not_ready_while_loading_or_shutting_down(app, service, monkeypatch):
    made = app()
    monkeypatch.setattr(service, "ready", False)
    assert one(made, "/ready", "GET").status_code == 503
    assert one(made, json={"inputs": "a"}).status_code == 503
    monkeypatch.setattr(service, "ready", True)
    monkeypatch.setattr(service, "closing", True)
    assert one(made, "/ready", "GET").json() == {"status": "shutting down"}
    refused = one(made, json={"inputs": "a"})
    assert (refused.status_code, "retry-after" in refused.headers) == (503, True)


def test_a_client_that_leaves_stops_its_request(app, service, monkeypatch):
    made, ended = app(), []

    async def slow(*_, **__):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    monkeypatch.setattr(service, "answer", slow)

    async def go():
        messages = [
            {"type": "http.request", "body": b'{"inputs": "a"}', "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive():
            await asyncio.sleep(0.05)
            return messages.pop(0)

        scope = {"type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed", "query_string": b"",
                 "headers": [(b"content-type", b"application/json")], "root_path": ""}  # fmt: skip
        await asyncio.wait_for(made(scope, receive, lambda message: asyncio.sleep(0)), 5)

    asyncio.run(go())
    assert ended == ["cancelled"]
    assert service.in_flight == 0
