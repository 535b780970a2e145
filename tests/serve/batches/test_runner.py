"""A replica's share of the batches, with an application that answers as the tests say."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.serve.batches.test_shelf import batch_of, shelf
from xlmr_ray.serve.batches.runner import BatchRunner
from xlmr_ray.serve.batches.shelf import Line, Shelf
from xlmr_ray.serve.service import Service


def runner(kept: Shelf, answer: Callable[[str], Awaitable[tuple[int, bytes]]]) -> BatchRunner:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        status, answered = await answer(json.loads(body)["input"])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answered})

    return BatchRunner(app, cast(Service, SimpleNamespace(ready=True, closing=False)), kept)


def test_an_answer_is_one_line(tmp_path: Path) -> None:
    """For clients, too, to whom other characters end a line; numbers stand as they were answered."""
    bodies = [b'{"data":[0.10000000149011612]}', '{"text":"a\u2028b\x85c"}'.encode()]

    async def answer(text: str) -> tuple[int, bytes]:
        return 200, bodies[int(text)]

    kept = shelf(tmp_path)
    name = batch_of(kept, 2)
    steps = runner(kept, answer)
    assert asyncio.run(steps.step())
    assert asyncio.run(steps.step())
    text = b"".join(kept.content(kept.batch(name)["output_file_id"])).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [one["response"]["body"] for one in lines] == [json.loads(body) for body in bodies]
    assert [(one["custom_id"], one["error"], one["response"]["status_code"]) for one in lines] == [
        ("0", None, 200),
        ("1", None, 200),
    ]
    assert bodies[0].decode() in text


def test_a_request_is_no_larger_than_it_was_sent(tmp_path: Path) -> None:
    """Limits of the service are for its UTF-8 then, as for requests that come one by one."""
    text, sent = "права человека " * 100, []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    line = Line("a", {"input": [text], "dimensions": 4})
    steps = BatchRunner(app, cast(Service, SimpleNamespace()), shelf(tmp_path))
    assert asyncio.run(steps.answer(line, "/v1/embeddings"))[0]
    assert asyncio.run(steps.answer(Line("b", {"input": "\ud800"}), "/v1/embeddings"))[0]
    assert sent[0] == httpx.Request("POST", "http://x", json=line.body).content
    with pytest.raises(UnicodeDecodeError):
        sent[1].decode()


def test_a_service_that_ends_leaves_its_chunk(tmp_path: Path) -> None:
    """Nothing of it is computed any more, another replica may have it at once, and other batches go on."""
    begun: list[str] = []
    ended: list[str] = []

    async def answer(text: str) -> tuple[int, bytes]:
        begun.append(text)
        if text == "3":
            return 503, b"{}"
        await asyncio.sleep(0.2)
        ended.append(text)
        return 200, b"{}"

    async def both() -> bool:
        done = await runner(kept, answer).step()
        await asyncio.sleep(0.5)
        return done

    kept = shelf(tmp_path)
    name = batch_of(kept, 30)
    small = batch_of(kept, 1)
    kept.store.put(f"open/{small}", b"0")  # the younger one
    assert asyncio.run(both())  # a chunk of the small one
    assert "3" in begun
    assert ended == ["0"]
    assert kept.batch(small)["request_counts"]["completed"] == 1
    assert kept.batch(name)["request_counts"]["completed"] == 0
    assert shelf(tmp_path).claim(name) == 0
