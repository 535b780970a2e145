"""`calibration.json` in a checkpoint's folder: by what the logits of a task are divided before they become scores."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlmr_ray.errors import UserError

FILE = "calibration.json"


def read_temperature(folder: Path, task: str) -> float | None:
    """The temperature of a task's logits; None where the folder has none, and scores are what the logits give. Raises
    UserError for a file that says something else.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    own = read_calibration(path).get(task)
    if own is None:
        return None
    value = own.get("temperature") if isinstance(own, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise UserError(f"{path}: {task}: expected a temperature above 0, got {value!r}; mend or remove the file")
    return float(value)


def read_calibration(path: Path) -> dict[str, Any]:
    """The file's content by task. Raises UserError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}; mend or remove the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}; mend or remove the file")
    return content


def write_calibration(folder: Path, task: str, values: Mapping[str, Any]) -> Path:
    """Puts a task's values into the folder's file, which is replaced whole. Returns the file."""
    path, temp = folder / FILE, folder / f".{FILE}.part"
    before = read_calibration(path) if path.is_file() else {}
    try:
        temp.write_text(json.dumps({**before, task: dict(values)}, indent=2) + "\n", "utf-8")
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return path
