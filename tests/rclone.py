"""An S3 server that knows no conditional writes: `rclone serve s3` on a local folder. The negative control."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.seaweed import ACCESS_KEY, BUCKET, SECRET_KEY, SeaweedFS

START_TIMEOUT = 30.0


@contextlib.contextmanager
def running_rclone() -> Iterator[SeaweedFS]:
    """Start the server with one bucket, and kill it at the end. Same keys as the SeaweedFS of the tests."""
    binary = Path(sys.executable).with_name("rclone")
    folder = Path(tempfile.mkdtemp(prefix="rclone-"))
    (folder / "data" / BUCKET).mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(binary), "serve", "s3", str(folder / "data"), "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", str(folder / "none"), "--cache-dir", str(folder / "c"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("rclone serve s3 did not start") from None
                time.sleep(0.05)
        yield SeaweedFS(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
