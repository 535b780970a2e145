"""A proxy between a client and an S3 server that injects faults. It keeps the Host header, which signatures cover."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
CODES = {403: "ExpiredToken", 409: "ConditionalRequestConflict", 429: "SlowDown", 500: "InternalError", 503: "SlowDown"}


Fault = int | str | Callable[[], object] | None


@dataclass
class FaultyProxy:
    """`fault(method, path)` is asked once a request. It answers with what goes wrong:

    None nothing; a status: that answer, the request not forwarded; "lost": forwarded, but the connection is reset
    instead of an answer; "reset": reset, not forwarded; "cut": half the body, then the end; "unconditional": forwarded
    without its If-Match and If-None-Match. A callable is called once the store has answered; then it is as "lost".
    """

    endpoint: str
    fault: Callable[[str, str], Fault] = lambda method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    under_way: int = 0
    sent: int = 0  # bytes of bodies that clients were sent
    injected: list[Fault] = field(default_factory=list)

    def clear(self) -> None:
        """No fault, and nothing seen yet."""
        self.fault = lambda method, path: None
        self.requests.clear()
        self.injected.clear()


@contextlib.contextmanager
def running_proxy(target: str) -> Iterator[FaultyProxy]:
    upstream = urlsplit(target)
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            self._counted = True
            with lock:
                proxy.under_way += 1
            try:
                self._forward()
            finally:
                self._leave()

        def _leave(self) -> None:
            """Before the answer is out: a client that has read it may send its next request at once."""
            if self._counted:
                self._counted = False
                with lock:
                    proxy.under_way -= 1

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                proxy.requests.append((self.command, self.path))
                fault = proxy.fault(self.command, self.path)
                if fault is not None:
                    proxy.injected.append(fault)
            if fault == "reset":
                self._reset()
                return
            if isinstance(fault, int):
                text = ERROR.format(code=CODES[fault]).encode() if self.command != "HEAD" else b""
                self._answer(fault, [("Content-Type", "application/xml")], text, len(text))
                return
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                dropped = name.lower() == "expect" or (fault == "unconditional" and name.lower().startswith("if-"))
                if not dropped:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if callable(fault):
                fault()
            if fault == "lost" or callable(fault):
                self._reset()
                return
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "connection")
            ]
            length = int(answer.getheader("Content-Length") or len(data))
            if fault == "cut":
                data = data[: len(data) // 2]
            self._answer(answer.status, headers, data, length)
            if fault == "cut":
                self._reset()

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
            self._leave()
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)
            with lock:
                proxy.sent += len(data)

        def _reset(self) -> None:
            self._leave()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None: ...  # resets are the purpose

    server = Server(("127.0.0.1", 0), Handler)
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
