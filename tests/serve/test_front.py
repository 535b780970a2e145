"""Through the real front, from start to end: `xlmr-ray serve` in its own process, two of them on one machine."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serve.front import HTTP, TWO, answers_503, start, stop, until

pytestmark = pytest.mark.timeout(400)

TEXT = "Everyone has the right to life."
BODY = {"inputs": TEXT, "parameters": {"top_k": 1}}


def label(url: str, client: httpx.Client) -> httpx.Response:
    return client.post(f"{url}/tasks/text-classification", json=BODY)


def raw(port: int, data: bytes, host: str = "127.0.0.1", seconds: float = 20) -> tuple[bytes, bytes]:
    """The head and body of what is answered to these bytes: as long as the head says, or until the connection ends.
    Where a body is refused before all of it was sent, HAProxy keeps the connection for the rest for a moment.
    """
    answer = b""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        connection.sendall(data)
        while part := connection.recv(65536):
            answer += part
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
            if length and len(body) >= int(length[1]):
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


def test_503_until_the_models_are_there(services):
    for served in services:
        assert not served.trouble
        waiting = [answer for answer in served.starting if answer[1] == 503]
        assert {path for path, *_ in waiting} == {"/ready", "/health", "/embed"}
        assert all(int(wait) > 0 and body["error"] and body["error_type"] for _, _, wait, body in waiting)
        # 408 is for a client that a busy machine holds up. Once it is ready it stays so; /embed without a body is a
        # client's mistake then, or not for the model.
        after = [(path, status) for path, status, *_ in served.starting if status not in (503, 408)]
        assert set(after) <= {("/ready", 200), ("/health", 200), ("/embed", 422), ("/embed", 400), ("/embed", 404)}, (
            after
        )


def test_the_address_that_is_said_can_be_asked(services):
    for served in services:
        (line,) = [line for line in served.lines if " answers: " in line]
        url = line.split()[0]
        assert url == served.url
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}
    assert services[1].url.startswith("http://[::1]:")


def test_no_line_but_ours(services):
    for served in services:
        ours = [line for line in served.lines if not line.startswith("{")]
        assert [line for line in ours if " answers: " not in line] == []


def test_the_users_own_modules_stay_out_of_the_workers(services):
    """The first one's checkpoint is a path from the same folder, which is found."""
    for served in services:
        assert (served.said.parent / "tokenizers.py").exists()
        assert not (served.said.parent / "ran").exists()


def test_nothing_else_listens_on_other_addresses(one):
    """HAProxy has its one port, and no statistics; the replicas' own HTTP servers are on loopback."""
    (front,) = one.processes("haproxy")
    listening = {tuple(c.laddr) for c in front.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", one.port)}
    for replica in one.processes("ServeReplica"):
        addresses = {c.laddr for c in replica.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        answering = [a for a in addresses if speaks_http(a.port)]
        assert answering
        assert {a.ip for a in answering} == {"127.0.0.1"}


def speaks_http(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code in (200, 503)
    except httpx.HTTPError:
        return False


def test_replicas_answer_their_own_front_only(one):
    (replica,) = one.processes("ServeReplica")
    ports = {c.laddr.port for c in replica.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    (port,) = [port for port in ports if speaks_http(port)]
    for headers in ({}, {"x-xlmr-ray-front": "another"}):
        answer = httpx.post(f"http://127.0.0.1:{port}/embed", json=BODY, headers=headers)
        assert answer.status_code == 503
        assert "another service" in answer.json()["error"]
    # What a client says of it counts for nothing.
    assert httpx.get(f"{one.url}/ready", headers={"x-xlmr-ray-front": "another"}).status_code == 200


def test_a_batch_is_computed(services):
    """Of the one whose settings name a folder."""
    one, two = services
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": TEXT}}
    file = {"file": ("requests.jsonl", json.dumps(line).encode())}
    with httpx.Client(base_url=one.url, timeout=60) as client:
        uploaded = client.post("/v1/files", files=file, data={"purpose": "batch"})
        assert uploaded.status_code == 200, uploaded.text
        body = {"input_file_id": uploaded.json()["id"], "endpoint": line["url"], "completion_window": "24h"}
        batch = client.post("/v1/batches", json=body).json()
        until(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed")
        output = client.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
        (answer,) = client.get(f"/v1/files/{output}/content").text.splitlines()
        wanted = client.post("/v1/embeddings", json=line["body"]).json()
        assert json.loads(answer)["response"]["body"] == wanted
    assert (one.said.parent / "batches" / "files").is_dir()
    assert httpx.post(f"{two.url}/v1/files", files=file, data={"purpose": "batch"}, timeout=60).status_code == 404


@pytest.mark.parametrize("requests", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_services_never_answer_for_each_other(services, requests):
    """Replicas of both are killed meanwhile: 503 and a time to come again, or the right answer."""
    expected = []
    for served in services:
        answer = label(served.url, httpx)
        assert answer.status_code == 200, answer.text
        expected.append(answer.json())
    assert expected[0] != expected[1]
    seen: Counter[object] = Counter()

    def ask(number: int) -> None:
        which = number % 2
        with httpx.Client(timeout=60) as client:
            while True:
                try:
                    answer = label(services[which].url, client)
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    seen["ended"] += 1  # what a killed replica had begun to answer
                    return
                if answer.status_code != 503:
                    break
                assert int(answer.headers["retry-after"]) > 0
                assert answer.json()["error"]
                seen[503] += 1
                time.sleep(0.5)
        seen[answer.status_code] += 1
        assert answer.status_code in (200, 502), answer.text
        if answer.status_code == 200:
            assert answer.json() == expected[which]

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(ask, number) for number in range(requests)]
        for served in services:
            until(lambda: sum(seen.values()) > requests // 8)
            for replica in served.processes("ServeReplica"):
                replica.kill()
        for future in done:
            future.result(300)
    assert seen[503] > 0
    assert seen[200] >= requests - 8  # at most what was being computed when a replica was killed
    for served in services:
        until(lambda: httpx.get(f"{served.url}/ready").status_code == 200)  # noqa: B023


def test_one_request_id(one):
    for given, kept in (("a-1", True), ("a b", False), ("ü" * 3, False), ("x" * 129, False), (None, False)):
        headers = {} if given is None else {"x-request-id": given.encode()}
        answer = httpx.post(f"{one.url}/tasks/text-classification", json=BODY, headers=headers)
        assert answer.status_code == 200
        (answered,) = answer.headers.get_list("x-request-id")
        assert (answered == given) == kept
        until(lambda: answered in [line["request_id"] for line in one.requests()])  # noqa: B023


def test_head_is_get_without_the_body(one):
    with httpx.Client(base_url=one.url) as client:
        for path in ("/", "/ready", "/info", "/v1/models", "/nothing"):
            head, get = client.head(path), client.get(path)
            assert head.status_code == get.status_code == (404 if path == "/nothing" else 200)
            assert (head.headers["content-length"], head.content) == (str(len(get.content)), b"")


def test_a_base_url_that_ends_in_a_slash(one):
    for path in ("//embed", "/embed/"):
        assert httpx.post(f"{one.url}{path}", json={"inputs": "a"}).status_code == 200


def test_another_method_is_answered_with_those_there_are(one):
    for method, path, allowed in (
        ("GET", "/embed", "POST"),
        ("HEAD", "/embed", "POST"),
        ("POST", "/info", "GET, HEAD"),
    ):
        answer = httpx.request(method, one.url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_limits_of_the_protocols(one):
    with httpx.Client(base_url=one.url, timeout=60) as client:
        many = [f"{TEXT} {number}" for number in range(40)]
        answer = client.post("/v1/embeddings", json={"input": many})
        assert [vector["index"] for vector in answer.json()["data"]] == list(range(40))
        for path, body in (
            ("/embed", {"inputs": many}),
            ("/tokenize", {"inputs": many}),
            ("/tokenize", {"inputs": "a " * 70_000}),
            ("/embed", {"inputs": TEXT * 200}),
            ("/v1/embeddings", {"input": TEXT * 200}),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, bool(answer.json()["error"])) == (413, True)


def test_pages_of_the_settings_may_ask(one):
    wish = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}
    for origin, status in (("https://example.org", 200), ("https://example.com", 400)):
        before = httpx.options(f"{one.url}/embed", headers={"origin": origin, **wish})
        after = [
            httpx.post(f"{one.url}/embed", json={"inputs": given}, headers={"origin": origin}) for given in ("a", 1)
        ]
        assert [before.status_code, *(answer.status_code for answer in after)] == [status, 200, 422]
        allowed = {answer.headers.get("access-control-allow-origin") for answer in (before, *after)}
        assert allowed == {origin if status == 200 else None}


def test_h2c_keeps_the_body(one):
    body = json.dumps(BODY).encode()
    request = (
        b"POST /tasks/text-classification HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings, close\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    head, answer = raw(one.port, request + body)
    assert head.startswith(b"http/1.1 200"), head
    assert json.loads(answer)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{", 408),
        (
            b"POST /embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 60000000\r\n\r\n" + b"a" * 70_000,
            413,
        ),
    ],
)
def test_the_fronts_own_errors_are_json(one, sent, status):
    head, body = raw(one.port, sent)
    assert head.startswith(b"http/1.1 %d " % status), head
    assert b"content-type: application/json" in head
    assert json.loads(body)["error"]


def test_what_is_no_http_is_refused(one):
    for sent in (b"NOT HTTP\r\n\r\n", b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n"):
        head, _ = raw(one.port, sent)
        assert head.startswith(b"http/1.1 400 ")


def test_a_body_of_60_mb(one):
    """Refused as soon as its size is known, and nobody waits for it; memory stays."""
    (replica,) = one.processes("ServeReplica")
    before = replica.memory_info().rss
    began = time.monotonic()
    head, body = raw(
        one.port,
        b"POST /embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n" % 3_000_000
        + b"a" * 3_000_000,
    )
    assert head.startswith(b"http/1.1 413"), head
    assert json.loads(body)["error"]
    assert time.monotonic() - began < 20  # at once, but for a busy machine
    assert replica.memory_info().rss < 1.1 * before


@pytest.mark.parametrize("chunked", [False, True])
def test_who_sends_somewhat_too_much_can_send_it_all(one, chunked):
    """And reads the answer then: Go's client, and so Caddy, gives up when it cannot send."""
    size, piece = 6_000_000, b"a" * 60_000
    kind = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % size
    with socket.create_connection(("127.0.0.1", one.port), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + kind + b"\r\n\r\n")
        for _ in range(size // len(piece)):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            connection.sendall(b"0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 413"), answer[:100]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_the_rest_of_a_refused_body_is_not_waited_for(one):
    """Of a client that goes on to send: the connection ends with the answer."""
    with socket.create_connection(("127.0.0.1", one.port), timeout=20) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n" + b"a" * 70_000)
        assert connection.recv(12) == b"HTTP/1.1 413"
        ended = False
        for _ in range(20):
            time.sleep(0.25)
            try:
                connection.sendall(b"a" * 1000)
            except ConnectionError:
                ended = True
                break
        assert ended


@pytest.mark.parametrize("count", [300, pytest.param(4200, marks=pytest.mark.slow)])
def test_half_sent_requests_stop_nobody(one, count):
    """From one address: those beyond its number are closed, the others are answered 408 after `header_s`."""
    with httpx.Client(timeout=30) as client:
        assert label(one.url, client).status_code == 200
        half = []
        answers: Counter[bytes] = Counter()
        for _ in range(count):
            try:
                connection = socket.create_connection(("127.0.0.1", one.port), source_address=("127.0.0.2", 0))
            except ConnectionError:  # closed already, as one too many
                answers[b""] += 1
                continue
            with suppress(ConnectionError):  # the same
                connection.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\nx: ")
            half.append(connection)
        for _ in range(20):
            assert label(one.url, client).status_code == 200
        for connection in half:
            connection.settimeout(60)
            try:
                answers[connection.recv(1000)[:12]] += 1
            except ConnectionError:
                answers[b""] += 1
            connection.close()
        assert answers[b"HTTP/1.1 408"] <= HTTP["client_connections"] + 64
        assert answers[b"HTTP/1.1 408"] + answers[b""] == count


def test_more_connections_than_a_client_may_have(one):
    """Those a little beyond are answered so in JSON. A busy machine may open them so slowly that the first ones have
    waited too long already: then again.
    """
    for _ in range(4):
        head, body, other = answer_beside_idle_connections(one)
        if head.startswith(b"HTTP/1.1 429"):
            break
    assert head.startswith(b"HTTP/1.1 429")
    assert b"retry-after: 1" in head
    assert json.loads(body)["error_type"] == "overloaded"
    assert other == 200


def answer_beside_idle_connections(one) -> tuple[bytes, bytes, int]:
    """The answer to a client with one connection more than it may have, and another client's status."""
    idle = [
        socket.create_connection(("127.0.0.1", one.port), source_address=("127.0.0.3", 0))
        for _ in range(HTTP["client_connections"] + 1)
    ]
    try:
        idle[-1].sendall(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        idle[-1].settimeout(10)
        head, _, body = b"".join(iter(lambda: idle[-1].recv(4096), b"")).partition(b"\r\n\r\n")
        return head, body, httpx.get(f"{one.url}/ready").status_code
    finally:
        for connection in idle:
            connection.close()


def test_ends_when_the_group_is_signalled(services, tmp_path: Path):
    """What was accepted is answered, everybody else gets 503, and nothing is left; the same port can be had again."""
    two = services[1]
    everything = psutil.Process(two.process.pid).children(recursive=True)
    answers: Counter[object] = Counter()
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not ended.is_set():
                try:
                    answer = label(two.url, client)
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                    if two.process.poll() is None and not any(p.is_running() for p in two.processes("haproxy")):
                        return
                    answers[type(error).__name__] += 1
                    return
                answers[answer.status_code] += 1
                if answer.status_code != 200:
                    assert answer.status_code == 503
                    assert answer.headers["retry-after"]
                    time.sleep(0.05)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: answers[200] > 20)
    os.killpg(two.process.pid, signal.SIGTERM)
    assert two.process.wait(45) == 0
    ended.set()
    for thread in threads:
        thread.join(30)
    assert set(answers) <= {200, 503, "ConnectError", "RemoteProtocolError", "ReadError"}, answers
    assert answers[503] > 0
    assert sum(answers.values()) - answers[200] - answers[503] <= len(threads)  # each its last, once the port was gone
    until(lambda: not [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 20)
    # Of the replica that an earlier test killed, Ray says so.
    ours = [line for line in two.lines if not line.startswith("{") and "(raylet)" not in line]
    assert ours[1:] == ["stopping: no new requests, those that were accepted are answered"]

    # Again at the same port, and killed without a word this time.
    again = start(tmp_path, TWO, host="::1", port=two.port)
    try:
        until(lambda: answers_503(again.url), 60)
        everything = psutil.Process(again.process.pid).children(recursive=True)
        os.killpg(again.process.pid, signal.SIGKILL)
        until(lambda: not [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 45)
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("::1", two.port))
    finally:
        stop(again)


def test_a_port_that_is_taken_is_one_line(services, tmp_path):
    other = start(tmp_path, TWO, port=services[0].port)
    assert other.process.wait(60) == 2
    (line,) = other.lines
    assert line == (
        f"xlmr-ray: http: 127.0.0.1:{services[0].port} cannot be had: Address already in use; give another --port"
    )
