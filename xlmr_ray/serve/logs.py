"""Log lines as JSON on standard error, one object a line, without any text of a request."""

import fcntl
import json
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

# The environment's variable in which the replicas find the pipe of the process that was started.
PIPE_VARIABLE = "XLMR_RAY_LOG_PIPE"
PIPE_BYTES = 1 << 20


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and the record's `facts`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        return json.dumps(line, ensure_ascii=False, default=str)


def log_failure(logger: logging.Logger, what: str, error: BaseException) -> None:
    """An error of ours: its kind and where it was raised, without its message, which might quote a text."""
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    kind = type(error).__name__
    logger.error("%s: %s at %s", what, kind, frames[-1:], extra={"facts": {"error": kind, "frames": frames}})


def log_as_json(level: str, stream: "TextIO | Lines | None" = None) -> None:
    """What the package logs goes to the stream (standard error if None) in this form, and nowhere else."""
    logger = logging.getLogger("xlmr_ray")
    handler: logging.Handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


class Lines:
    """Writes lines into a pipe and never waits for who reads it: a line that finds no room is lost, or the rest of it,
    and how many were is said, on a new line, as soon as there is room again.
    """

    def __init__(self, file: int) -> None:
        os.set_blocking(file, False)
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.file, self.lost = file, 0

    def write(self, text: str) -> None:
        try:
            if self.lost:
                os.write(self.file, b"\n" + lost_lines(self.lost))
                self.lost = 0
            line = text.encode()
            self.lost += os.write(self.file, line) < len(line)
        except OSError:
            self.lost += 1

    def flush(self) -> None:
        pass


def lost_lines(count: int) -> bytes:
    """The line that says so."""
    message = f"lines of the log that nobody took were lost: {count}"
    record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
    return JsonFormatter().format(record).encode() + b"\n"


def log_pipe(folder: Path) -> Path:
    """A named pipe; each line of JSON that is written into it goes to standard error as it is, and nothing else. Ray's
    own way would put a prefix in front of the replicas' lines, and merge those that look alike.
    """
    path = folder / "log"
    os.mkfifo(path, 0o600)
    reader = os.open(path, os.O_RDWR)  # open for writing, too, so that it never ends

    def copy() -> None:
        lost = 0
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not line.startswith(b"{"):
                    continue
                try:
                    if lost:
                        os.write(2, lost_lines(lost))
                        lost = 0
                    os.write(2, line)
                except OSError:  # the disk is full, or who read it has gone
                    lost += 1

    threading.Thread(target=copy, daemon=True).start()
    return path


def log_stream() -> TextIO | Lines:
    """Where a replica's lines go: into the pipe of the process that was started, if there is one."""
    path = os.environ.get(PIPE_VARIABLE)
    if path is None:
        return sys.__stderr__ or sys.stderr
    try:
        return Lines(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:  # nobody reads any more
        return sys.__stderr__ or sys.stderr
