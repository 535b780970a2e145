"""OpenAI's client uploads requests, and gets an answer or an error for each, also over a restart."""

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
import uvicorn

from tests.clients.conftest import TEXTS
from xlmr_ray import pipeline
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.batches import shelf
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

ENDPOINT: Literal["/v1/embeddings"] = "/v1/embeddings"


@contextmanager
def served(folder: Path | None) -> Iterator[str]:
    """A service over HTTP that keeps its batches in the folder."""
    settings = ServeSettings.model_validate(
        {
            "models": [{"model": "embedded:mini", "tasks": ["embedding"]}],
            "engine": {"threads": 1, "tokenizers": 1},
            "batches": {} if folder is None else {"folder": str(folder), "lines": 1000, "file_bytes": 200_000},
        }
    )
    service = Service.load(settings)
    server = uvicorn.Server(uvicorn.Config(build_app(service, settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended while starting"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        service.close()


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def requests_of(texts: list[str], **more: object) -> io.BytesIO:
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": ENDPOINT, "body": {"model": "mini", "input": text, **more}}
        for n, text in enumerate(texts)
    ]
    return io.BytesIO("\n".join(json.dumps(one, ensure_ascii=False) for one in lines).encode())


def started(client: openai.OpenAI, file: io.BytesIO) -> openai.types.Batch:
    uploaded = client.files.create(file=("requests.jsonl", file), purpose="batch")
    assert uploaded.purpose == "batch"
    return client.batches.create(input_file_id=uploaded.id, endpoint=ENDPOINT, completion_window="24h")


def ended(client: openai.OpenAI, name: str, seconds: float = 60) -> openai.types.Batch:
    until = time.monotonic() + seconds
    while (batch := client.batches.retrieve(name)).status in ("in_progress", "cancelling"):
        assert time.monotonic() < until, batch
        time.sleep(0.05)
    return batch


def lines_of(client: openai.OpenAI, file: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file by their custom_id, each once."""
    lines = [json.loads(line) for line in client.files.content(file).text.splitlines()] if file else []
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[openai.OpenAI]:
    with served(folder) as url:
        yield client_of(url)


def test_each_request_has_one_line(client: openai.OpenAI) -> None:
    texts = [*TEXTS, "", *(f"{n} {TEXTS[n % 3]}" for n in range(150))]  # an empty text is refused
    batch = ended(client, started(client, requests_of(texts)).id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (154, 153, 1)
    answers, errors = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert answers.keys() | errors.keys() == {f"r{n}" for n in range(154)}
    assert answers.keys().isdisjoint(errors)
    assert errors["r3"]["response"]["status_code"] == 400
    assert errors["r3"]["response"]["body"]["error"]["code"] == "empty"
    pipe = pipeline("embedding", "embedded:mini", normalize=True)
    for n in (0, 1, 100):
        body = answers[f"r{n}"]["response"]["body"]
        assert body["data"][0]["embedding"] == pytest.approx(pipe(texts[n]).tolist(), abs=1e-6)
    assert next(one.id for one in client.batches.list(limit=1)) == batch.id
    output = client.files.retrieve(batch.output_file_id or "")
    assert output.bytes == len(client.files.content(output.id).content)
    assert output.id in [one.id for one in client.files.list()]
    client.files.delete(output.id)
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.files.retrieve(output.id)


def test_interactive_requests_come_first(client: openai.OpenAI) -> None:
    """All are answered while a batch is computed; it goes on after them."""
    batch = started(client, requests_of([f"{n} " + "many words " * 60 for n in range(200)], truncate=True))
    for _ in range(20):
        assert client.embeddings.create(model="mini", input=TEXTS[0]).data
    assert client.batches.retrieve(batch.id).status == "in_progress"
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(client, batch.id)
    assert done.status == "cancelled"
    answers, errors = lines_of(client, done.output_file_id), lines_of(client, done.error_file_id)
    assert len(answers) + len(errors) == 200
    assert {one["error"]["code"] for one in errors.values()} == {"batch_cancelled"}
    with pytest.raises(openai.UnprocessableEntityError, match="cannot be cancelled"):
        client.batches.cancel(batch.id)


def test_it_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "CLAIM_S", 0.5)
    with served(tmp_path) as url:
        client = client_of(url)
        batch = started(client, requests_of([f"{n} " + "many words " * 60 for n in range(200)], truncate=True))
        while (counts := client.batches.retrieve(batch.id).request_counts) is None or not counts.completed:
            time.sleep(0.02)
    kept = {one.name for one in (tmp_path / "batches" / batch.id / "parts").iterdir()}
    assert 0 < len(kept) < 4
    with served(tmp_path) as url:
        done = ended(client_of(url), batch.id)
        assert done.status == "completed"
        assert lines_of(client_of(url), done.output_file_id).keys() == {f"r{n}" for n in range(200)}


WRONG = {
    "no JSON": (b"{", "is not JSON"),
    "no object": (b"[]", "expected a JSON object"),
    "nested": (b"[" * 100_000, "is nested more than"),
    "a key twice": (requests_of(["a"]).getvalue().replace(b'"input"', b'"model"'), "body.model: is there twice"),
    "twice": (requests_of(["a", "b"]).getvalue().replace(b"r1", b"r0"), "another line has the same"),
    "another route": (requests_of(["a"]).getvalue().replace(b"embeddings", b"rerank"), "expected the batch's endpoint"),
    "empty": (b"\n\n", "the file has no requests"),
    "too many": (requests_of(["a"] * 1001).getvalue(), "at most 1000 are allowed"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_fails_at_once(client: openai.OpenAI, what: str) -> None:
    content, message = WRONG[what]
    batch = started(client, io.BytesIO(content))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert message in str(batch.errors.data[0].message)


def test_what_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="the file has more than 200000 bytes") as refused:
        client.files.create(file=("a.jsonl", b"x" * 300_000), purpose="batch")
    assert refused.value.status_code == 413
    with pytest.raises(openai.UnprocessableEntityError, match="purpose: expected batch"):
        client.files.create(file=("a.jsonl", b"x"), purpose="fine-tune")
    for name in ("file-none", "..%2Fbatches", "f" * 300):
        with pytest.raises(openai.NotFoundError):
            client.files.content(name)
    with pytest.raises(openai.NotFoundError, match="no file 'file-none'"):
        client.batches.create(input_file_id="file-none", endpoint=ENDPOINT, completion_window="24h")
    with pytest.raises(openai.UnprocessableEntityError, match="endpoint"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/responses", completion_window="24h")


def test_without_a_folder() -> None:
    with served(None) as url:
        answer = httpx.get(f"{url}/v1/batches")
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "this service keeps no files: its settings name no batches.folder"
