"""Log lines as JSON on standard error, one object a line, without any text of a request."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import TextIO


class JsonLines(logging.Formatter):
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


def log_as_json(level: str, stream: TextIO | None = None) -> None:
    """What the package logs goes to the stream (standard error if None) in this form, and nowhere else."""
    logger = logging.getLogger("xlmr_ray")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
