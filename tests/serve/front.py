"""`xlmr-ray serve` as a user starts it, in a process group of its own, and what it has said."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from xlmr_ray.checkpoint.files import resolve

BIN = Path(sys.executable).parent / "xlmr-ray"
ENGINE = {"threads": 1, "tokenizers": 1}
REPLICAS = {"cpus": 0.5, "health_check_period_s": 1.0}
# The tests of one client's connections take 127.0.0.2 and others' addresses for themselves.
HTTP = {"client_connections": 100, "header_s": 2}
ONE = {
    "models": [
        {
            "model": "mini",
            "name": "one",
            "tasks": ["text-classification", "embedding", "sentence-similarity", "feature-extraction"],
        },
        "embedded:mini/heads/answers",
        "embedded:mini/heads/relevance",
        {"model": "embedded:mini/heads/entailment", "tasks": ["zero-shot-classification"]},
    ],
    "engine": ENGINE,
    "replicas": REPLICAS,
    "http": HTTP,
    "cors": {"origins": ["https://example.org"]},
    "batches": {"folder": "batches"},
}
TWO = {
    "models": [{"model": "embedded:mini/heads/entailment", "name": "two", "tasks": ["text-classification"]}],
    "engine": ENGINE,
    "replicas": REPLICAS,
}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    said: Path
    url: str
    # What was answered from the first connection until the service was ready: path, status, retry-after, body.
    starting: list[tuple[str, int, str | None, Any]] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        return self.said.read_text(errors="replace").splitlines()

    @property
    def ready(self) -> bool:
        return any(line.startswith("http://") and " answers: " in line for line in self.lines)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def requests(self) -> list[dict[str, Any]]:
        """The log's lines of requests."""
        found = [json.loads(line) for line in self.lines if line.startswith("{")]
        return [line for line in found if line["message"] == "request"]

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of this launch whose command line or title has the name."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def watch(self) -> None:
        """Asks from the start on; to be run in a thread."""
        with httpx.Client(timeout=30) as client:
            while not self.ready and self.process.poll() is None:
                for path in ("/ready", "/health", "/embed"):
                    try:
                        answer = client.request("POST" if path == "/embed" else "GET", self.url + path)
                    except httpx.ConnectError:
                        if self.starting:
                            self.trouble.append(f"{path}: no connection, after there was one")
                    except httpx.HTTPError as error:
                        self.trouble.append(f"{path}: {error!r}")
                    else:
                        if answer.status_code == 503:
                            wait = answer.headers.get("retry-after")
                            self.starting.append((path, 503, wait, answer.json()))
                        else:
                            self.starting.append((path, answer.status_code, None, answer.text))
                time.sleep(0.1)


def start(folder: Path, settings: dict[str, Any], host: str = "127.0.0.1", port: int | None = None) -> Served:
    file, said = folder / "serve.json", folder / "said"
    port = port or free_port(host)
    file.write_text(json.dumps({**settings, "http": {**settings.get("http", {}), "host": host, "port": port}}))
    # As a user's, without what the Ray session of other tests has set.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with said.open("wb") as output:
        process = subprocess.Popen(
            [BIN, "serve", file],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    return Served(process, said, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def wait_until_ready(served: Served, seconds: float = 180) -> None:
    until(lambda: served.ready or served.process.poll() is not None, seconds)
    assert served.process.poll() is None, served.said.read_text()


def stop(served: Served) -> None:
    if served.process.poll() is None:
        served.process.send_signal(signal.SIGTERM)
        try:
            served.process.wait(60)
        except subprocess.TimeoutExpired:
            served.process.kill()


@contextmanager
def two_services(one: dict[str, Any], two: dict[str, Any]) -> Iterator[tuple[Served, Served]]:
    """Started together, the second at ::1, each in a folder with a checkpoint `mini` and a module of the user's."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        for folder in (Path(first), Path(second)):
            (folder / "mini").symlink_to(resolve("embedded:mini"))
            (folder / "tokenizers.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise SystemExit(3)\n")
        services = [start(Path(first), one), start(Path(second), two, host="::1")]
        watchers = [threading.Thread(target=served.watch, daemon=True) for served in services]
        try:
            for thread in watchers:
                thread.start()
            for served in services:
                wait_until_ready(served)
            for thread in watchers:
                thread.join(30)
            yield services[0], services[1]
        finally:
            for served in services:
                stop(served)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.1)


def answers_503(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 503
    except httpx.HTTPError:
        return False
