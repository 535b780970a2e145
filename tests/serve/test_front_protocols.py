"""What clients send and what they are answered, through the real front: limits of each protocol, fields that clients
are known to send, texts that are too long, templates that would fill the memory, keys.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serve.front import Served, until

pytestmark = pytest.mark.timeout(400)

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]
QUERY, DOCUMENTS = "Who may go to school?", ["No one is a slave.", "Everyone has the right to education."]
CONTEXT = "Everyone has the right to education. Education shall be free."
LONG = "right " * 1000


@pytest.fixture
def http(one: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=one.url, timeout=60) as client:
        yield client


def many(count: int) -> list[str]:
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("path", "field", "rest", "most"),
    [
        ("/embed", "inputs", {}, 32),
        ("/tokenize", "inputs", {}, 32),
        ("/tasks/embedding", "inputs", {}, 32),
        ("/rerank", "texts", {"query": QUERY}, 32),
        ("/rerank", "documents", {"query": QUERY}, 1000),
        ("/v1/rerank", "documents", {"query": QUERY}, 1000),
        ("/v2/rerank", "documents", {"query": QUERY}, 1000),
        ("/v2/embed", "texts", {}, 1000),
        ("/v1/embeddings", "input", {}, 2048),
        ("/embeddings", "input", {}, 2048),
        ("/classify", "input", {}, 2048),
        ("/pooling", "input", {"task": "classify"}, 2048),
        ("/score", "text_2", {"text_1": QUERY}, 2048),
    ],
)
def test_inputs_of_a_protocol(http: httpx.Client, path: str, field: str, rest: dict[str, Any], most: int) -> None:
    answer = http.post(path, json={**rest, field: many(most)})
    assert answer.status_code == 200, answer.text
    answer = http.post(path, json={**rest, field: many(most + 1)})
    assert (answer.status_code, f"{most + 1} inputs" in answer.text) == (413, True), answer.text


def test_tokenizing_and_decoding_have_limits_and_stall_nobody(http: httpx.Client, one: Served) -> None:
    for path, body in (
        ("/tokenize", {"inputs": "a " * 900_000}),
        ("/decode", {"ids": [300] * 300_001}),
        ("/decode", {"ids": [[300]] * 33}),
        ("/embed", {"inputs": [300] * 300_001, "truncate": True}),
    ):
        answer = http.post(path, json=body)
        assert (answer.status_code, bool(answer.json()["error"])) == (413, True), answer.text[:500]
    heavy = [("/tokenize", {"inputs": "a " * 65_000}), ("/decode", {"ids": [300] * 290_000})]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, one.url + heavy[n % 2][0], json=heavy[n % 2][1], timeout=60) for n in range(8)]
        took = []
        while not all(done.done() for done in asked):
            began = time.monotonic()
            assert http.post("/embed", json={"inputs": "a"}).status_code == 200
            took.append(time.monotonic() - began)
        assert {done.result().status_code for done in asked} == {200}
    assert max(took) < 5, took  # it was 21 s


@pytest.mark.parametrize(
    ("path", "plain", "more"),
    [
        ("/v1/embeddings", {"input": TEXTS, "model": "one"}, {"model": None, "user": "a"}),
        ("/embed", {"inputs": TEXTS}, {"options": {"wait_for_model": True, "use_cache": True}, "parameters": {}}),
        ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, {"top_n": 2, "model": "relevance"}),
        ("/tasks/question-answering", {"inputs": {"question": QUERY, "context": CONTEXT}}, {"options": {}}),
        (
            "/tasks/zero-shot-classification",
            {"inputs": CONTEXT, "parameters": {"candidate_labels": ["law", "war"]}},
            {"parameters": {"candidate_labels": "law, war"}},
        ),
    ],
)
def test_what_clients_send_besides(http: httpx.Client, path: str, plain: dict[str, Any], more: dict[str, Any]) -> None:
    wanted = http.post(path, json=plain)
    given = http.post(path, json={**plain, **more})
    assert (wanted.status_code, given.status_code) == (200, 200), given.text
    assert given.json() == wanted.json()
    answer = http.post(path, json={**plain, "optionz": 1})
    assert (answer.status_code, "optionz" in answer.text) == (422, True), answer.text


def test_forms_of_the_same(http: httpx.Client) -> None:
    question = {"question": QUERY, "context": CONTEXT}
    assert (
        http.post("/tasks/question-answering", json=question).json()
        == http.post("/tasks/question-answering", json={"inputs": question}).json()
    )
    texts, objects = (
        http.post("/rerank", json={"query": QUERY, "documents": documents}).json()["results"]
        for documents in (DOCUMENTS, [{"text": text} for text in DOCUMENTS])
    )
    assert texts == objects


@pytest.mark.parametrize(
    ("path", "body", "cut"),
    [
        ("/embed", {"inputs": LONG}, {"truncate": True}),
        ("/embed_all", {"inputs": LONG}, {"truncate": True}),
        ("/predict", {"inputs": LONG}, {"truncate": True}),
        ("/rerank", {"query": QUERY, "texts": [LONG]}, {"truncate": True}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [LONG]}}, {"parameters": {"truncate": True}}),
        ("/v1/embeddings", {"input": LONG}, {"truncate": True}),
        ("/v1/embeddings", {"input": LONG}, {"truncate_prompt_tokens": -1}),
        ("/pooling", {"input": LONG, "task": "embed"}, {"truncate_prompt_tokens": -1}),
        ("/score", {"text_1": QUERY, "text_2": LONG}, {"truncate_prompt_tokens": -1}),
        ("/embeddings", {"input": LONG, "truncate": False}, {"truncate": True}),
        ("/v2/embed", {"texts": [LONG], "truncate": "NONE"}, {"truncate": "END"}),
        ("/tasks/embedding", {"inputs": LONG}, {"truncate": True}),
        (
            "/tasks/sentence-similarity",
            {"inputs": {"source_sentence": "a", "sentences": [LONG]}},
            {"parameters": {"truncate": True}},
        ),
        ("/v1/rerank", {"query": QUERY, "documents": [LONG], "truncation": False}, {"truncation": True}),
    ],
)
def test_a_text_that_is_too_long(http: httpx.Client, path: str, body: dict[str, Any], cut: dict[str, Any]) -> None:
    """413, at which clients of text-embeddings-inference cut and try again; the option that is named does it."""
    answer = http.post(path, json=body)
    assert answer.status_code == 413, answer.text
    if (name := next(iter(cut))) != "parameters":
        assert name.partition("_")[0] in answer.text
    answer = http.post(path, json={**body, **cut})
    assert (answer.status_code, answer.headers.get("x-truncated")) == (200, "0"), answer.text


@pytest.mark.parametrize(
    "template",
    [
        "{:>300000000}",
        "{:>999999999999999999}",
        "{!r}",
        "{0}",
        "{0.__class__}",
        "{[0]}",
        "{} {}",
        "no place",
        "{",
        "{{}}",
    ],
)
def test_templates(http: httpx.Client, one: Served, template: str) -> None:
    """Refused at once, and in no more memory."""
    (replica,) = one.processes("ServeReplica")
    before, began = replica.memory_info().rss, time.monotonic()
    parameters = {"candidate_labels": ["a", "b"], "hypothesis_template": template}
    answer = http.post("/tasks/zero-shot-classification", json={"inputs": CONTEXT, "parameters": parameters})
    assert answer.status_code == 422, answer.text
    assert "hypothesis_template" in answer.text
    assert template not in answer.text or len(template) < 5
    assert time.monotonic() - began < 20  # at once, but for a busy machine
    assert replica.memory_info().rss < 1.1 * before


def test_keys_at_sighup(http: httpx.Client, one: Served) -> None:
    """From a file that begins with a byte order mark; and without keys again."""
    file, keys = one.said.parent / "serve.json", one.said.parent / "keys"
    before = file.read_text()
    keys.write_text("first\nsecond\n", "utf-8-sig")
    try:
        file.write_text(json.dumps({**json.loads(before), "keys": {"file": str(keys)}}))
        again(one)
        until(lambda: http.post("/embed", json={"inputs": "a"}).status_code == 401)
        for key, status in (("first", 200), ("second", 200), ("third", 401), ("\ufefffirst", 401)):
            answer = http.post("/embed", json={"inputs": "a"}, headers={"authorization": f"Bearer {key}".encode()})
            assert answer.status_code == status
        assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/ready").status_code == 200
        file.write_text("models: []")
        os.kill(one.process.pid, signal.SIGHUP)
        until(lambda: any(line.startswith("the settings stay as they were: ") for line in one.lines))
        assert http.post("/embed", json={"inputs": "a"}).status_code == 401
    finally:
        file.write_text(before)
        again(one)
    until(lambda: http.post("/embed", json={"inputs": "a"}).status_code == 200)


def again(served: Served) -> None:
    said = "the settings were read again"
    before = served.lines.count(said)
    os.kill(served.process.pid, signal.SIGHUP)
    until(lambda: served.lines.count(said) > before)
