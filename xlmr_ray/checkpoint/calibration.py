"""`calibration.json` in a checkpoint's folder: by what the logits of a task are divided before they become scores, and
from which score on each label counts.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from xlmr_ray.checkpoint.folder import CALIBRATION
from xlmr_ray.errors import UserError


def read_temperature(folder: Path, task: str) -> float | None:
    """The temperature of a task's logits; None where the folder has none, and scores are what the logits give. Raises
    UserError for a file that says something else.
    """
    own = values_of(folder, task)
    if own is None or ("temperature" not in own and "thresholds" in own):
        return None
    value = own.get("temperature")
    if not is_number(value) or value <= 0:
        raise UserError(
            f"{folder / CALIBRATION}: {task}: expected a temperature above 0, got {value!r}; mend or remove the file"
        )
    return float(value)


def read_thresholds(folder: Path, task: str, labels: Sequence[str]) -> tuple[float | None, ...] | None:
    """The score from which on each of the labels counts, None for a label that has no threshold; None instead of all
    where the folder has none. Raises UserError for a file that says something else.
    """
    found = (values_of(folder, task) or {}).get("thresholds")
    if found is None:
        return None
    if not isinstance(found, Mapping) or not all(one is None or is_number(one) for one in found.values()):
        raise UserError(
            f"{folder / CALIBRATION}: {task}: expected thresholds as an object of labels with a number or null "
            "each; mend or remove the file"
        )
    if strange := [name for name in found if name not in labels]:
        raise UserError(
            f"{folder / CALIBRATION}: {task}: a threshold for {strange[0]!r}, which is none of the checkpoint's "
            "labels; mend or remove the file"
        )
    return tuple(None if found.get(label) is None else float(found[label]) for label in labels)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def values_of(folder: Path, task: str) -> Mapping[str, Any] | None:
    """What the folder's file has for a task; None where there is nothing. Raises UserError."""
    path = folder / CALIBRATION
    own = read_calibration(path).get(task) if path.is_file() else None
    if own is not None and not isinstance(own, Mapping):
        raise UserError(f"{path}: {task}: expected an object, got {type(own).__name__}; mend or remove the file")
    return own


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
    path, temp = folder / CALIBRATION, folder / f".{CALIBRATION}.part"
    before = read_calibration(path) if path.is_file() else {}
    try:
        temp.write_text(json.dumps({**before, task: dict(values)}, indent=2) + "\n", "utf-8")
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)
    return path
