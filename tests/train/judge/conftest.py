"""A server that answers as OpenAI's chat completions do, in this process, as a test tells it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

TEXTS = [f"Document {index} tells of {'cats' if index % 3 else 'ships'}." for index in range(30)]
ROWS = {"text": TEXTS, "lang": ["de", "fr"] * 15, "people": ["cats" if i % 3 else "ships" for i in range(30)]}
# What a reply is made of: the status, the headers, and the answer's words or the whole body.
Told = tuple[int, dict[str, str], Any]


@dataclass
class Server:
    """`answers` makes a reply of a prompt and how often it was asked before; `asked` has the requests' bodies."""

    answers: Callable[[str, int], Told] = field(default=lambda prompt, before: (200, {}, right(prompt)))
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, body: dict[str, Any], headers: dict[str, str]) -> Told:
        prompt = body["messages"][-1]["content"]
        with self.lock:
            before = sum(one["messages"][-1]["content"] == prompt for one in self.asked)
            self.asked.append(body)
            self.headers.append(headers)
        return self.answers(prompt, before)


def right(prompt: str) -> str:
    return "cats" if "cats." in prompt else "ships"


def completion(words: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": words}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "large",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, words = told.reply(
                {"path": self.path, **body}, {name.lower(): value for name, value in self.headers.items()}
            )
            content = words if isinstance(words, bytes) else json.dumps(completion(words)).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        told.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        yield told
        listening.shutdown()


@pytest.fixture
def job(tmp_path: Path, server: Server) -> Callable[..., Path]:
    """A job file over 30 documents; sections given are put into those that are usual."""

    def make(rows: dict[str, list[Any]] = ROWS, **sections: dict[str, Any]) -> Path:
        source = tmp_path / "corpus.parquet"
        pq.write_table(pa.table(rows), source)
        content: dict[str, Any] = {
            "input": {"path": str(source), "keep": ["lang", "people"]},
            "sample": {"documents": 30},
            "judge": {
                "url": server.url,
                "model": "large",
                "prompt": "One of {labels}?\n\n{text}",
                "labels": ["cats", "ships"],
            },
            "output": {"path": str(tmp_path / "out")},
        }
        for name, section in sections.items():
            content[name] = {**content[name], **section}
        path = tmp_path / "label.yaml"
        path.write_text(yaml.safe_dump(content), "utf-8")
        return path

    return make


def labels(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "out" / "labels.parquet").to_pylist()
    return sorted(found, key=lambda row: row["row"])


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "_label.json").read_text("utf-8"))
    return found
