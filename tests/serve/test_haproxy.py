"""HAProxy as we configure it, before replicas that are scripts: without Ray."""

import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from xlmr_ray.errors import UserError
from xlmr_ray.serve import haproxy
from xlmr_ray.serve.haproxy import HAProxy, listener
from xlmr_ray.serve.settings import HttpSection

HEADER_S = 2
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


def request_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data and (part := connection.recv(65536)):
        data += part
    return data


@contextmanager
def before(folder: Path, answer: Callable[[socket.socket], None], **http: int) -> Iterator[int]:
    """The port of an HAProxy whose one replica answers so, and then closes."""
    replica = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            request = request_of(connection)
            if b"GET /ready" in request:
                connection.sendall(OK % 2 + b"{}")
            elif request:
                answer(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = replica.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener("127.0.0.1", 0) as port:
        number = port.getsockname()[1]
        with HAProxy(HttpSection(**{"header_s": HEADER_S, **http}), port, "token", folder, sys.__stderr__) as front:
            front.use({"one": replica.getsockname()[1]})
            while httpx.get(f"http://127.0.0.1:{number}/ready").status_code != 200:
                time.sleep(0.05)
            yield number
    replica.close()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_answer_that_ends_too_early_is_502(tmp_path: Path, method: str) -> None:
    with before(tmp_path, lambda connection: connection.sendall(OK % 2000 + b"a" * 500)) as port:
        answer = httpx.request(method, f"http://127.0.0.1:{port}/embed")
    if method == "HEAD":  # has no body at all
        assert (answer.status_code, answer.headers["content-length"]) == (200, "2000")
        return
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "1")
    assert answer.json()["error_type"] == "unavailable"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("size", [0, 2, 15_000, 17_000, 3_000_000])
def test_whole_answers_pass(tmp_path: Path, size: int) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(OK % size)
        time.sleep(0.05)
        connection.sendall(b"a" * size)

    with before(tmp_path, answer) as port:
        got = httpx.post(f"http://127.0.0.1:{port}/embed", json={})
    assert (got.status_code, got.content) == (200, b"a" * size)


def test_a_replica_may_compute_for_longer_than_a_client_may_wait(tmp_path: Path) -> None:
    def answer(connection: socket.socket) -> None:
        time.sleep(1.5 * HEADER_S)
        connection.sendall(OK % 2 + b"{}")

    with before(tmp_path, answer) as port:
        assert httpx.post(f"http://127.0.0.1:{port}/embed", json={}, timeout=30).json() == {}


@pytest.mark.parametrize("a_client", [100, 200])
def test_some_connections_are_left_for_others(tmp_path: Path, a_client: int) -> None:
    """Two addresses take all that they can get, and more than there are; where one may have all, it gets all."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK % 2 + b"{}")

    taken: list[socket.socket] = []
    with before(tmp_path, answer, header_s=60, connections=200, client_connections=a_client) as port:
        try:
            for number in range(200):
                address = f"127.0.0.{2 + number % 2 if a_client == 100 else 2}"
                with suppress(ConnectionError):
                    taken.append(socket.create_connection(("127.0.0.1", port), 5, source_address=(address, 0)))
            if a_client == 100:
                for _ in range(3):
                    assert httpx.post(f"http://127.0.0.1:{port}/embed", json={}, timeout=10).json() == {}
            time.sleep(0.5)
            kept = [one for one in taken if not select.select([one], [], [], 0)[0]]  # the others are at their end
            assert len(kept) == 200 if a_client == 200 else 140 < len(kept) < 160
        finally:
            for one in taken:
                one.close()


def test_a_connection_whose_body_was_refused_is_closed(tmp_path: Path) -> None:
    """Though its client sends no more and does not leave: as soon as a head would have been too late."""
    error = json.dumps({"error": "too large"}).encode()

    def answer(connection: socket.socket) -> None:
        head = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(error)
        connection.sendall(head + error)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # closed with bytes unread, it would be reset, and the answer lost
            pass

    with before(tmp_path, answer) as port, socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        client.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n" + b"a" * 40_000)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 413")
    assert received.endswith(error)


def test_http_2_is_refused_before_it_begins(tmp_path: Path) -> None:
    """A stream costs who begins and resets it less than the front: nobody is let."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings, stream = bytes(3) + b"\x04" + bytes(5), b"\0\0\x0e\x01\x05\0\0\0\x01\x82\x86\x04\x05/ready\x41\x01x"
    with (
        before(tmp_path, lambda connection: connection.sendall(OK % 2 + b"{}")) as port,
        socket.create_connection(("127.0.0.1", port), timeout=15) as client,
    ):
        client.sendall(preface + settings + stream)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error_type"] == "invalid"


def test_a_folder_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/scratch/job")
    with (
        listener("127.0.0.1", 0) as port,
        pytest.raises(UserError, match="TMPDIR /scratch/job: too long for the paths of sockets; set RAY_TMPDIR to one"),
    ):
        HAProxy(HttpSection(), port, "token", tmp_path / ("x" * 98), sys.__stderr__)


def test_a_body_comes_no_faster_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection that sends all it can kept a core of the replica busy; what most send is not slowed."""
    monkeypatch.setattr(haproxy, "BODY_RATE", 1_000_000)

    def answer(connection: socket.socket) -> None:
        left = 3_000_000
        while left > 0 and (part := connection.recv(65536)):
            left -= len(part)
        connection.sendall(OK % 2 + b"{}")

    with before(tmp_path, answer) as port:
        began = time.monotonic()
        # The head is not all that is read with it.
        assert httpx.post(f"http://127.0.0.1:{port}/embed", content=b"a" * 3_100_000, timeout=30).json() == {}
        assert time.monotonic() - began > 1.5
