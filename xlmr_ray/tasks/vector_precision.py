"""How the numbers of a vector are stored: in 32 or 16 bits, or in 8 or 1, as sentence-transformers'
`quantize_embeddings` has them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError
from xlmr_ray.tasks.task import check_choice

FLOATS = ("float32", "float16")
BYTES = ("int8", "uint8")  # 255 steps between the smallest and the largest number of each dimension
BITS = ("binary", "ubinary")  # a bit for each number, 1 above 0; eight of them a byte, signed or not
PRECISIONS = (*FLOATS, *BYTES, *BITS)
FILED = ("min", "max", "normalized")  # a file's names for the parts of `Ranges`
_TYPES = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "int8": pa.int8(),
    "uint8": pa.uint8(),
    "binary": pa.int8(),
    "ubinary": pa.uint8(),
}


class Ranges(NamedTuple):
    """The smallest and the largest number of each dimension in a sample of vectors, `normalized` to length 1 or not."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    normalized: bool


UNMEASURED = Ranges((), (), False)  # of a job whose run has yet to take its sample


def check_precision(task: str, precision: object, ranges: Ranges | None, width: int, normalized: bool) -> None:
    """Raises UserError for a precision that there is not, or that needs ranges where there are none, or those of
    vectors of another width or kind.
    """
    check_choice(task, "precision", precision, PRECISIONS)
    if precision not in BYTES:
        return
    if ranges is None:
        raise UserError(
            f"task {task}: precision {precision} needs ranges, the smallest and the largest number of each dimension "
            "in a sample: name a table that a job has made with this precision, or make them with `xlmr-ray bench "
            "JOB.yaml --ranges ranges.json` and say ranges: ranges.json"
        )
    if ranges == UNMEASURED:
        return
    if len(ranges.low) != width:
        raise UserError(f"task {task}: ranges: got {len(ranges.low)} dimensions, expected {width}")
    if ranges.normalized != normalized:
        kinds = {True: "of length 1", False: "not normalized"}
        raise UserError(
            f"task {task}: ranges are of vectors {kinds[ranges.normalized]}, with normalize {str(normalized).lower()} "
            f"they are {kinds[normalized]}: measure ranges with normalize: {str(normalized).lower()}, or ask for the "
            "others"
        )


def read_ranges(task: str, given: object) -> Ranges | None:
    """The option `ranges`: the path or URL of a JSON file with `min`, `max` and `normalized`, or of a job's output,
    whose published run has measured them; such a mapping, or the three in a list.
    """
    if given is None or given == UNMEASURED:
        return None if given is None else UNMEASURED
    content: Any = given
    if isinstance(given, str | Path):
        url = str(given)
        if not url.endswith(".json"):
            run = read_json(task, f"{url.rstrip('/')}/_current.json").get("run_id")
            url = f"{url.rstrip('/')}/_runs/{run}/ranges/{task}.json"
        content = read_json(task, url)
    if isinstance(content, Mapping):
        content = [content.get(name) for name in FILED]
    if isinstance(content, list | tuple) and len(content) == 2:
        content = [*content, None]
    try:
        low, high = (tuple(float(one) for one in side) for side in content[:2])
        (normalized,) = content[2:]
    except (TypeError, ValueError):
        raise UserError(
            f"task {task}: ranges: expected two lists of numbers and whether the vectors were normalized, or a JSON "
            f"file with {', '.join(FILED)}"
        ) from None
    if not isinstance(normalized, bool):
        raise UserError(
            f"task {task}: ranges: nothing says whether the vectors were normalized to length 1: measure them anew, or "
            'add "normalized": true or false'
        )
    if not low or len(low) != len(high) or not all(a <= b for a, b in zip(low, high, strict=True)):
        raise UserError(
            f"task {task}: ranges: the two lists are empty or differ in length, or a smallest number is above a largest"
        )
    return Ranges(low, high, normalized)


def read_json(task: str, url: str) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where there is none."""
    try:
        with fsspec.open(url, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"task {task}: ranges: {url} cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UserError(f"task {task}: ranges: {url}: got a JSON {type(content).__name__}, expected an object")
    return content


def to_json(ranges: Ranges, vectors: int) -> str:
    """Ranges over so many vectors, for `read_ranges`."""
    return json.dumps(dict(zip(FILED, ranges, strict=True)) | {"vectors": vectors}) + "\n"


def write_ranges(path: Path, vectors: NDArray[np.float32], *, normalized: bool) -> None:
    """The smallest and the largest number of each dimension of vectors `(N, width)`, for `read_ranges`."""
    low, high = vectors.min(axis=0).tolist(), vectors.max(axis=0).tolist()
    path.write_text(to_json(Ranges(low, high, normalized), len(vectors)))


def stored_type(precision: str, width: int) -> pa.DataType:
    """The Arrow type of a vector of `width` numbers."""
    return pa.list_(_TYPES[precision], -(-width // 8) if precision in BITS else width)


def stored(numbers: NDArray[np.floating], precision: str, ranges: Ranges | None) -> NDArray[Any]:
    """Vectors `(N, width)` as they are stored, `(N, width)` or `(N, ceil(width / 8))`; numbers outside the ranges as
    the nearest inside.
    """
    kept: NDArray[Any]
    if precision in FLOATS:
        kept = numbers.astype(np.dtype(precision), copy=False)
    elif precision in BITS:
        packed = np.packbits(numbers > 0, axis=-1)
        kept = packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    else:
        assert ranges is not None
        assert ranges != UNMEASURED
        low, high = np.array([ranges.low, ranges.high], np.float32)
        steps = (high - low) / 255
        codes = np.floor((numbers.astype(np.float32) - low) / np.where(steps == 0, np.float32(1), steps))
        codes = np.clip(codes, 0, 255)
        kept = codes.astype(np.uint8) if precision == "uint8" else (codes - 128).astype(np.int8)
    return kept


def as_column(numbers: NDArray[np.floating], precision: str, ranges: Ranges | None) -> pa.Array:
    """Vectors `(N, width)` as a column of `stored_type`."""
    kept = stored(numbers, precision, ranges)
    return pa.FixedSizeListArray.from_arrays(pa.array(kept.ravel()), kept.shape[-1])
