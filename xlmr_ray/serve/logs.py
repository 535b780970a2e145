"""Log lines as JSON on standard error, one object a line, without any text of a request."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`, and the record's `facts`. Of an exception, where it was raised and its
    kind: its message might quote a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info and record.exc_info[2] is not None:
            kind, _, trace = record.exc_info
            frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]
            line |= {"error": kind.__name__ if kind else None, "frames": frames}
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: str) -> None:
    """What the package logs goes to standard error in this form, and nowhere else."""
    logger = logging.getLogger("xlmr_ray")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
