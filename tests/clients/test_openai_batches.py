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
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.batches import shelf
from xlmr_ray.serve.batches.shelf import Shelf
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

ENDPOINT: Literal["/v1/embeddings"] = "/v1/embeddings"


@contextmanager
def served(folder: Path | str | None, *, cache_bytes: int = 0, **limits: Any) -> Iterator[str]:
    """A service over HTTP that keeps its batches in the folder."""
    settings = ServeSettings.model_validate(
        {
            "models": [{"model": "embedded:mini", "tasks": ["embedding"]}],
            "engine": {"threads": 1, "tokenizers": 1, "cache_bytes": cache_bytes},
            "limits": limits,
            "batches": {"folder": folder and str(folder), "lines": 1000, "file_bytes": 200_000, "upload_s": 2},
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


def test_results_that_are_kept_serve_batches_too(tmp_path: Path, client: openai.OpenAI) -> None:
    """What was asked one by one, or stands in a batch before, is not computed; the answers are those without."""
    with served(tmp_path, cache_bytes=10_000_000) as url:
        caching = client_of(url)
        caching.embeddings.create(model="mini", input=TEXTS[:2])
        for _ in range(2):
            batch = ended(caching, started(caching, requests_of(TEXTS * 2)).id)
            found = lines_of(caching, batch.output_file_id)
        page = httpx.get(f"{url}/metrics").text
    (known,) = (line.split()[1] for line in page.splitlines() if "_known_sequences_total{" in line)
    assert float(known) == 4 * len(TEXTS) - (len(TEXTS) - 2)
    plain = ended(client, started(client, requests_of(TEXTS * 2)).id)
    for name, line in lines_of(client, plain.output_file_id).items():
        assert found[name]["response"]["body"] == line["response"]["body"]


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


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_it_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(shelf, "CLAIM_S", 0.5)
    kept: str = str(tmp_path)
    if where == "bucket":
        store = request.getfixturevalue("seaweed")
        kept = store.new_folder()
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
    with served(kept) as url:
        client = client_of(url)
        batch = started(client, requests_of([f"{n} " + "many words " * 60 for n in range(200)], truncate=True))
        while (counts := client.batches.retrieve(batch.id).request_counts) is None or not counts.completed:
            time.sleep(0.02)
    assert 0 < len(list(open_store(kept).list(f"batches/{batch.id}/parts/"))) < 4
    with served(kept) as url:
        client = client_of(url)
        done = ended(client, batch.id)
        assert done.status == "completed"
        assert lines_of(client, done.output_file_id).keys() == {f"r{n}" for n in range(200)}
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert {one.id for one in client.files.list()} == {batch.input_file_id, done.output_file_id}


WRONG = {
    "no JSON": (b"{", "is not JSON"),
    "no object": (b"[]", "expected a JSON object"),
    "nested": (b"[" * 30_000, "is nested more than"),
    "too many lists": (b"[" * 100_000, "lists and objects"),
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
        for path in ("batches", "files", "files/a", "batches/a"):
            answer = httpx.get(f"{url}/v1/{path}")
            assert answer.status_code == 404
            error = answer.json()["error"]
            assert error["message"] == "this service keeps no files: its settings name no batches.folder"
            assert (error["code"], error["type"]) == ("not_found", "not_found_error")


def test_the_time_of_an_upload_and_a_store_that_fails(tmp_path: Path) -> None:
    """Not `limits.request_s` ends an upload, but `batches.upload_s`; a store that is away is said, as what may be tried
    again.
    """
    line = requests_of(["a"]).getvalue()

    def slowly(parts: int) -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        yield b'content-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(parts):
            time.sleep(0.3)
            yield line
        yield b"\r\n--x--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=x"}
    with served(tmp_path / "kept", request_s=0.3) as url:
        answer = httpx.post(f"{url}/v1/files", content=slowly(2), headers=kind)
        assert (answer.status_code, answer.json()["bytes"]) == (200, 2 * len(line))
        answer = httpx.post(f"{url}/v1/files", content=slowly(8), headers=kind)
        assert answer.status_code == 408
        assert answer.json()["error"]["message"] == "the request took more than 2 s"
        client = client_of(url)
        (tmp_path / "kept").rename(tmp_path / "away")
        (tmp_path / "kept").write_text("a file in the folder's place")
        with pytest.raises(openai.InternalServerError, match="the store of files and batches fails") as failed:
            client.files.create(file=("a.jsonl", b"x"), purpose="batch")
        assert failed.value.status_code == 503
        (tmp_path / "kept").unlink()
        (tmp_path / "away").rename(tmp_path / "kept")
        assert len(client.files.list().data) == 1


def test_lists_read_what_they_show(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [started(client, io.BytesIO(b"{")) for _ in range(5)]
    read: list[str] = []
    for name in ("batch", "file"):
        plain = getattr(Shelf, name)
        monkeypatch.setattr(Shelf, name, lambda self, one, plain=plain: read.append(one) or plain(self, one))
    batches = client.batches.list(limit=2)
    assert [one.id for one in batches.data] == read == [made[4].id, made[3].id]
    assert [one.id for one in batches.get_next_page().data] == [made[2].id, made[1].id]
    assert len(read) == 4
    read.clear()
    files = client.files.list(limit=2, purpose="batch")
    assert [one.id for one in files.data] == read == [made[4].input_file_id, made[3].input_file_id]
    assert [one.id for one in files.get_next_page().data] == [made[2].input_file_id, made[1].input_file_id]
    assert {one.purpose for one in client.files.list(purpose="batch_output", order="asc")} <= {"batch_output"}
    with pytest.raises(openai.NotFoundError, match="nothing is called"):
        client.batches.list(after="batch_none")
