"""A hash of a checkpoint's weights: the same for the same tensors, however cut into files or prefixed."""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from xlmr_ray.checkpoint.folder import ENCODER_DIGEST, LORA, encoder_folder, has_adapter, model_folder, read_config
from xlmr_ray.checkpoint.names import canonical_names, is_encoder
from xlmr_ray.checkpoint.tensors import BIN, SINGLE, TensorFiles, open_tensors
from xlmr_ray.errors import UserError

# Pieces are hashed beside each other: half of a multilingual model is one matrix.
PIECE = 32 * 2**20
_known: dict[str, dict[str, list[str]]] = {}


def weights_digest(folder: Path, beside: Sequence[Path] = ()) -> str:
    """64 hex digits (SHA-256) over canonical name, dtype, shape and content of every weight, and of the layers that a
    sentence-transformers folder has after the pooling and a task reads `beside` them. Raises UserError as loading does.

    Remembered in this process by the files' sizes and times of change.
    """
    check_encoder(folder)
    model = _digest(folder, lambda name: True)
    files = [*layer_files(folder), *beside]
    if not files:
        return model
    return hashlib.sha256("\n".join([model, *map(_file_hash, files)]).encode()).hexdigest()


def encoder_digest(folder: Path) -> str:
    """The same over the encoder only (no pooler, no head): equal for checkpoints that can share one forward pass."""
    return _digest(folder, is_encoder)


def check_encoder(folder: Path) -> None:
    """Raises UserError for a head whose encoder is not the one any more that it was trained on."""
    where = encoder_folder(folder)
    if where is None:
        return
    expected, got = str(read_config(folder)[ENCODER_DIGEST]), encoder_digest(folder)
    if got != expected:
        raise UserError(
            f"{folder}: this head was trained on an encoder with digest {expected[:12]}, {where} has {got[:12]}: "
            "put the encoder back, or train the head again"
        )


def files_stamp(folder: Path, beside: Sequence[Path] = ()) -> str:
    """Machine, path, inode, size and time of change of the weights' files: where it is equal, so is the digest,
    without reading the files again.
    """
    files = [*open_tensors(model_folder(folder)).files, *layer_files(folder), *beside]
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return repr([platform.node(), *((path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats)])


def layer_files(folder: Path) -> list[Path]:
    """The weights of the modules that follow the first in a sentence-transformers folder, in their order; and those of
    an adapter beside the encoder.
    """
    lora = [folder / LORA] if has_adapter(folder) else []
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        paths = [str(module["path"]) for module in modules[1:]]
    except (OSError, ValueError, LookupError, TypeError):
        return lora
    return [folder / path / name for path in paths for name in (SINGLE, BIN) if (folder / path / name).is_file()] + lora


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(folder: Path, chosen: Callable[[str], bool]) -> str:
    where = model_folder(folder)
    tensors = open_tensors(where)
    names = canonical_names(tensors.stored, str(where)).on_disk
    key = files_stamp(folder)
    if key not in _known:
        _known[key] = _hashes(tensors, list(names.values()))
    total = hashlib.sha256()
    for canonical, name in sorted(names.items()):
        if chosen(canonical):
            stored = tensors.stored[name]
            line = f"{canonical} torch.{stored.dtype_name} {tuple(stored.shape)} {' '.join(_known[key][name])}\n"
            total.update(line.encode())
    return total.hexdigest()


def _hashes(tensors: TensorFiles, names: list[str]) -> dict[str, list[str]]:
    """The hashes of each tensor's pieces."""
    pieces = [(name, start) for name in names for start in range(0, max(1, tensors.stored[name].nbytes), PIECE)]

    def piece(job: tuple[str, int]) -> str:
        name, start = job
        return hashlib.sha256(tensors.content(name)[start : start + PIECE].data).hexdigest()

    hashed: dict[str, list[str]] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (name, _), value in zip(pieces, pool.map(piece, pieces), strict=True):
            hashed.setdefault(name, []).append(value)
    return hashed
