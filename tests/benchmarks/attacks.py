"""What others see of a service while it is attacked, one attack after the other, and what is left of its memory.

    python -m tests.benchmarks.attacks [--only slowloris ...] [--seconds 12] [--model embedded:mini]

Runs `xlmr-ray serve` as a user would. An honest client asks twenty times a second, over a connection that it keeps and
over a new one in turn. Attackers have addresses and processes of their own, and of the same cores what others leave
(nice 19): it counts what the service does for them. Prints for each attack the honest client's p50 and p99 beside those
of the seconds before, what attackers were answered, and the memory of replica and HAProxy before and a few seconds
after. Raise the limit of open files for 10,000 connections.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import resource
import select
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread

import psutil

from tests.benchmarks.service import BIN, Load, serving

ZERO_SHOT = "embedded:mini/heads/entailment"
BODY = json.dumps({"inputs": "Everyone has the right to life."}).encode()
BIG = 1_900_000  # bytes, just under `limits.body_bytes`
ADDRESSES = 12

Answers = Counter[str]
Attack = Callable[[int, float, Answers], None]


def connect(port: int, number: int = 0) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), 20, source_address=(f"127.0.1.{1 + number % ADDRESSES}", 0))
    made.settimeout(20)
    return made


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *lines, "", ""]).encode()


def post(path: str, body: bytes, *lines: str) -> bytes:
    return head("POST", path, "content-type: application/json", f"content-length: {len(body)}", *lines) + body


def status(data: bytes) -> str:
    return data[9:12].decode("latin-1") if data.startswith(b"HTTP/") else "closed" if not data else "not HTTP"


def answer(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or is silent for a second behind its first bytes."""
    data = b""
    try:
        while part := connection.recv(1 << 20):
            data += part
            connection.settimeout(1)
    except (TimeoutError, ConnectionError):
        pass
    return data


def in_turn(requests: list[bytes]) -> Attack:
    """Each request on a connection of its own, by four at once, until the time is over."""

    def attack(port: int, until: float, answers: Answers) -> None:
        def one(number: int) -> None:
            turn = number
            while time.monotonic() < until:
                with suppress(ConnectionError, TimeoutError), connect(port, turn) as connection:
                    with suppress(ConnectionError):
                        connection.sendall(requests[turn % len(requests)])
                    answers[status(answer(connection))] += 1
                turn += 1

        threads = [Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return attack


def dripping(first: bytes, drip: bytes, count: int) -> Attack:
    """So many connections that send a beginning, and then some bytes each second."""

    def attack(port: int, until: float, answers: Answers) -> None:
        there: list[socket.socket] = []
        for number in range(count):
            with suppress(OSError):
                one = connect(port, number)
                one.sendall(first)
                there.append(one)
            if time.monotonic() > until:
                break
        answers["connected"] = len(there)
        while time.monotonic() < until:
            for one in there:
                with suppress(OSError):
                    one.sendall(drip)
            time.sleep(1)
        for one in there:
            ready, _, _ = select.select([one], [], [], 0) if one.fileno() < 1024 else ([], [], [])
            if ready:
                with suppress(OSError):
                    answers[status(one.recv(100))] += 1
            one.close()

    return attack


def bodies_of_60_mb(port: int, until: float, answers: Answers) -> None:
    piece = b"a" * 1_000_000
    turn = 0
    while time.monotonic() < until:
        turn += 1
        with suppress(ConnectionError, TimeoutError), connect(port, turn) as connection:
            kind = "transfer-encoding: chunked" if turn % 2 else "content-length: 60000000"
            with suppress(ConnectionError):
                connection.sendall(head("POST", "/embed", "content-type: application/json", kind))
                for _ in range(60):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if turn % 2 else piece)
            answers[status(answer(connection))] += 1


def readers_of_a_byte(port: int, until: float, answers: Answers) -> None:
    """Who ask for answers of many megabytes, and take a byte a second."""
    body = json.dumps({"inputs": ["right " * 600] * 32, "truncate": True, "parameters": {}}).encode()
    request = post("/embed_all", body)
    there = []
    for number in range(8):
        one = connect(port, number)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(request)
        there.append(one)
    taken: Counter[int] = Counter()
    first = [b""] * len(there)
    while time.monotonic() < until:
        for number, one in enumerate(there):
            one.settimeout(0.05)
            with suppress(OSError):
                part = one.recv(1 if taken[number] > 12 else 13)
                first[number] = first[number] or part
                taken[number] += len(part)
        time.sleep(0.5)
    for number, one in enumerate(there):
        answers[f"{status(first[number])}"] += 1
        one.close()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def rapid_reset(port: int, until: float, answers: Answers) -> None:
    """HTTP/2 without a word before: streams that are reset as soon as they are begun."""
    # HPACK: GET, http, :path /info, :authority x
    block = b"\x82\x86\x04\x05/info\x41\x01x"
    turn = 0
    while time.monotonic() < until:
        turn += 1
        with suppress(OSError), connect(port, turn) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
            stream = 1
            while time.monotonic() < until and stream < 20_001:
                pairs = [
                    frame(1, 5, one, block) + frame(3, 0, one, struct.pack(">I", 8))
                    for one in range(stream, stream + 200, 2)
                ]
                connection.sendall(b"".join(pairs))
                answers["streams"] += 100
                stream += 200
                ready, _, _ = select.select([connection], [], [], 0)
                if ready and not connection.recv(1 << 20):
                    break
            answers["connections"] += 1


NESTED = [b'{"inputs":' + b"[" * BIG, b'{"inputs":' + b'{"a":' * (BIG // 5), b"[" * 900_000 + b"]" * 900_000]
JSON_BOMBS = [
    *NESTED,
    b'{"inputs":"a",' + b",".join(b'"%d":1' % n for n in range(BIG // 11)) + b"}",
    b'{"inputs":"a",' + b'"a":1,' * (BIG // 6) + b'"a":1}',
    b'{"inputs":' + b"1" * BIG + b"}",
    b'{"inputs":1e' + b"9" * BIG + b"}",
    b'{"inputs":[' + b"NaN," * (BIG // 4) + b"NaN]}",
    b'{"inputs":"' + b"\\ud800" * (BIG // 6) + b'"}',
    b'{"inputs":[' + b'"",' * (BIG // 3) + b'""]}',
    b'{"inputs":[' + b"[1]," * (BIG // 4) + b"[1]]}",
]
TEMPLATES = ["{:>300000000}", "{:>999999999999999999}", "{0.__class__}", "{!r:>99999999}"]
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = b"0\r\n\r\n" + SMUGGLED


def form(*lines: str, body: bytes = CHUNKED) -> bytes:
    return head("POST", "/embed", "content-type: application/json", *lines) + body


# Of each, one answer may come that is not an error: the second request in it is nobody's.
SMUGGLING = {
    "CL and TE": form("content-length: 6", "transfer-encoding: chunked"),
    "TE and CL": form("transfer-encoding: chunked", f"content-length: {len(CHUNKED)}"),
    "two CLs": form("content-length: 0", f"content-length: {len(SMUGGLED)}", body=SMUGGLED),
    "a list of CLs": form(f"content-length: 0, {len(SMUGGLED)}", body=SMUGGLED),
    "CL with a sign": form(f"content-length: +{len(SMUGGLED)}", body=SMUGGLED),
    "a line that goes on": form("x: a", " transfer-encoding: chunked", f"content-length: {len(CHUNKED)}"),
    "TE that goes on": form("transfer-encoding:", " chunked", f"content-length: {len(CHUNKED)}"),
    "a space before the colon": form("transfer-encoding : chunked", f"content-length: {len(CHUNKED)}"),
    "TE twice": form("transfer-encoding: chunked", "transfer-encoding: identity", f"content-length: {len(CHUNKED)}"),
    "another TE": form("transfer-encoding: xchunked", f"content-length: {len(CHUNKED)}"),
    "TE with a tab": form("transfer-encoding: \tchunked", f"content-length: {len(CHUNKED)}"),
    "bare line feeds": b"POST /embed HTTP/1.1\nhost: x\ncontent-length: 5\ntransfer-encoding: chunked\n\n" + CHUNKED,
    "NUL in a header": form("x: a\x00b", f"content-length: {len(CHUNKED)}"),
}
CHUNKS = [
    form("transfer-encoding: chunked", body=size + b"\r\n" + b"a" * 100 + b"\r\n0\r\n\r\n")
    for size in (b"-1", b"zz", b"0x10", b"ffffffffffffffff", b"f" * 5000, b"", b" 10", b"10;" + b"a" * 50_000)
]
HEADERS = [
    head("GET", "/info", "x: " + "a" * 15_000),
    head("GET", "/info", "x: " + "a" * 60_000),
    head("GET", "/info", *[f"x{n}: a" for n in range(2000)]),
    head("GET", "/" + "a" * 30_000),
    head("GET", "/info", "cookie: " + "a=b; " * 3000),
]
UPGRADES = [
    head(
        "GET",
        path,
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    for path in ("/embed", "/", "/ws", "/info")
]
PIPELINED = post("/embed", BODY) * 100 + head("GET", "/info") * 50
ATTACKS: dict[str, Attack] = {
    "format bombs": in_turn(
        [
            post(
                "/tasks/zero-shot-classification",
                json.dumps(
                    {"inputs": "a", "parameters": {"candidate_labels": ["a", "b"], "hypothesis_template": template}}
                ).encode(),
            )
            for template in TEMPLATES
        ]
    ),
    "JSON bombs": in_turn([post("/embed", body) for body in JSON_BOMBS]),
    "gzip": in_turn([post("/embed", gzip.compress(b" " * 60_000_000), "content-encoding: gzip")]),
    "pipelining": in_turn([PIPELINED]),
    "smuggling": in_turn(list(SMUGGLING.values())),
    "huge headers": in_turn(HEADERS),
    "chunk sizes": in_turn(CHUNKS),
    "websockets": in_turn(UPGRADES),
    "100-continue": in_turn([head("POST", "/embed", "expect: 100-continue", "content-length: 100")]),
    "bodies of 60 MB": bodies_of_60_mb,
    "slowloris": dripping(b"POST /embed HTTP/1.1\r\nhost: x\r\nx: ", b"a", 4000),
    "slow bodies": dripping(head("POST", "/embed", "content-length: 30000"), b"a", 4000),
    "10,000 connections": dripping(b"", b"", 10_000),
    "10,000 kept alive": dripping(head("GET", "/ready"), b"", 10_000),
    "readers of a byte": readers_of_a_byte,
    "rapid reset": rapid_reset,
}


@contextmanager
def honest(port: int) -> Iterator[Load]:
    """Asks all the while."""
    took: dict[int, list[float]] = {}
    ended = Event()

    def ask() -> None:
        kept = HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(1 << 30):
            if ended.is_set():
                break
            connection = kept if number % 2 else HTTPConnection("127.0.0.1", port, timeout=60)
            began = time.monotonic()
            try:
                connection.request("POST", "/embed", BODY, {"content-type": "application/json"})
                answered = connection.getresponse()
                answered.read()
                code = answered.status
            except OSError:
                code = 0
                connection.close()
            took.setdefault(code, []).append(time.monotonic() - began)
            if connection is not kept:
                connection.close()
            ended.wait(max(0.0, began + 0.05 - time.monotonic()))

    thread = Thread(target=ask)
    thread.start()
    made = Load(1.0, took)
    try:
        yield made
    finally:
        ended.set()
        thread.join()


def attacking(name: str, port: int, seconds: float, out: "multiprocessing.Queue[Answers]") -> None:
    """In a process: what it was answered follows on something that says that it has begun."""
    os.nice(19)
    answers: Answers = Counter()
    out.put(answers)
    ATTACKS[name](port, time.monotonic() + seconds, answers)
    out.put(answers)


def memory(parent: int, name: str) -> float:
    """MiB of the largest process of this name."""
    family = psutil.Process(parent).children(recursive=True)
    return max((one.memory_info().rss for one in family if name in " ".join(one.cmdline())), default=0) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--model", default="embedded:mini")
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    settings = {
        "models": [
            {"model": options.model, "tasks": ["embedding", "feature-extraction"]},
            {"model": ZERO_SHOT, "tasks": ["zero-shot-classification"]},
        ],
        "http": {"port": 0},
        "log": {"level": "warning"},
    }
    processes = multiprocessing.get_context("spawn")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        Path(file.name).write_text(json.dumps(settings))
        with serving([BIN / "xlmr-ray", "serve", file.name], r"(http://\S+) answers") as (address, process):
            port = int(address.rpartition(":")[2])
            with honest(port):
                time.sleep(5)
            for name in options.only:
                with honest(port) as before:
                    time.sleep(options.seconds / 2)
                at_first = {one: memory(process, one) for one in ("ServeReplica", "haproxy")}
                out: multiprocessing.Queue[Answers] = processes.Queue()
                attacker = processes.Process(target=attacking, args=(name, port, options.seconds, out))
                attacker.start()
                out.get()
                with honest(port) as during:
                    answers = out.get(timeout=20 * options.seconds)
                attacker.join()
                time.sleep(12)
                left = ", ".join(f"{one} {was:.0f} -> {memory(process, one):.0f} MiB" for one, was in at_first.items())
                codes = {code: len(took) for code, took in during.took.items()}
                print(
                    f"{name:20s} p50 {1e3 * before.centile(0.5):5.1f} -> {1e3 * during.centile(0.5):6.1f} ms, p99 "
                    f"{1e3 * before.centile(0.99):5.1f} -> {1e3 * during.centile(0.99):7.1f} ms   honest {codes}   "
                    f"attackers {dict(answers)}   {left}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
