"""A hash of a checkpoint's weights: the same for the same tensors, however cut into files or prefixed."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.names import canonical_names, is_encoder
from xlmr_ray.checkpoint.tensors import TensorFiles, open_tensors

# Pieces are hashed beside each other: half of a multilingual model is one matrix.
PIECE = 32 * 2**20
_known: dict[tuple[object, ...], str] = {}


def weights_digest(folder: Path) -> str:
    """64 hex digits (SHA-256) over canonical name, dtype, shape and content of every weight. Raises UserError as
    loading does.

    Remembered in this process by the files' sizes and times of change.
    """
    return _digest(folder, "weights", lambda name: True)


def encoder_digest(folder: Path) -> str:
    """The same over the encoder alone (no pooler, no head): equal for checkpoints that can share one forward pass."""
    return _digest(folder, "encoder", is_encoder)


def _digest(folder: Path, kind: str, wanted: Callable[[str], bool]) -> str:
    where = model_folder(folder)
    tensors = open_tensors(where)
    stats = [(file.resolve(), file.stat()) for file in tensors.files]
    key = (kind, *((str(path), s.st_size, s.st_mtime_ns) for path, s in stats))
    if key not in _known:
        _known[key] = _hash(
            tensors, {c: n for c, n in canonical_names(tensors.stored, str(where)).on_disk.items() if wanted(c)}
        )
    return _known[key]


def _hash(tensors: TensorFiles, names: dict[str, str]) -> str:
    pieces = [
        (name, start) for name in names.values() for start in range(0, max(1, tensors.stored[name].nbytes), PIECE)
    ]

    def piece(job: tuple[str, int]) -> str:
        name, start = job
        content = tensors.read(name).contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(content[start : start + PIECE].data).hexdigest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashed: dict[str, list[str]] = {}
        for (name, _), value in zip(pieces, pool.map(piece, pieces), strict=True):
            hashed.setdefault(name, []).append(value)
    total = hashlib.sha256()
    for canonical, name in sorted(names.items()):
        stored = tensors.stored[name]
        total.update(f"{canonical} {stored.dtype} {tuple(stored.shape)} {' '.join(hashed[name])}\n".encode())
    return total.hexdigest()
