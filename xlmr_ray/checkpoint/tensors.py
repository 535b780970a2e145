"""Tensors by the names they have on disk, read one at a time. Nothing here runs code that a file brings."""

import json
import math
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xlmr_ray.checkpoint.folder import encoder_folder, model_folder
from xlmr_ray.checkpoint.names import DECODER_WEIGHT, WORDS, canonical_names, is_encoder
from xlmr_ray.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of some files. `stored` tells of each; `read` gives one, backed by the file (copy it to keep it)."""

    def __init__(self, files: list[Path], only: dict[str, Path] | None = None) -> None:
        """Opens the files. `only` is an index's map of names to files. Raises UserError for one that is not whole."""
        self.files = tuple(files)
        self.stored: dict[str, Stored] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            _check_weights(file)
            self._open[file] = _open_safetensors(file) if file.suffix == ".safetensors" else _open_torch(file)
            for name, shape, dtype in _describe(file, self._open[file]):
                if only is None or only.get(name) == file:
                    self.stored[name] = Stored(file, shape, dtype)
        for name, file in (only or {}).items():
            if name not in self.stored:
                raise UserError(f"{file}: no tensor {name!r}, which the index says is there")

    def joined(self, other: "TensorFiles", names: Iterable[str]) -> "TensorFiles":
        """The tensors of those names, and all of the other's."""
        both = TensorFiles([])
        both.files = self.files + other.files
        both.stored = {name: self.stored[name] for name in names} | other.stored
        both._open = self._open | other._open
        return both

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, with the shape and dtype that it has on disk."""
        handle = self._open[self.stored[name].file]
        tensor: Tensor = handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return tensor


def open_tensors(folder: Path) -> TensorFiles:
    """The weights of a checkpoint's folder; for a head beside its encoder, the encoder's and its own. Raises
    UserError.
    """
    encoder = encoder_folder(folder)
    if encoder is not None:
        where = model_folder(encoder)
        whole = open_tensors(where)
        on_disk = canonical_names(whole.stored, str(where)).on_disk
        words = WORDS if WORDS in on_disk else DECODER_WEIGHT
        kept = [name for canonical, name in on_disk.items() if is_encoder(canonical) or canonical == words]
        return whole.joined(_open_folder(folder), kept)
    return _open_folder(folder)


def _open_folder(folder: Path) -> TensorFiles:
    path = find_weights(folder)
    if path.suffix != ".json":
        return TensorFiles([path])
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        only = {str(name): folder / _file_name(file) for name, file in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an index with a weight_map of file names: {error}") from None
    return TensorFiles(sorted(set(only.values())), only)


def find_weights(folder: Path) -> Path:
    """The file to start from: the weights, or the index of their shards. Raises UserError when there is none."""
    names = (SINGLE, INDEX, BIN, BIN_INDEX)
    for name in names:
        if (folder / name).is_file():
            if (folder / ADAPTER).is_file():
                raise UserError(
                    f"{folder}: {ADAPTER} beside {name}: an adapter, which would be passed over: merge it into its "
                    "model, or take its files away"
                )
            return folder / name
    hint = ""
    if (folder / "adapter_model.safetensors").exists() or (folder / "adapter_model.bin").exists():
        hint = "; it holds an adapter: merge it into its model first"
    elif any((folder / name).exists() for name in ("tf_model.h5", "flax_model.msgpack")):
        hint = "; it holds TensorFlow or Flax weights: save them as safetensors with transformers first"
    raise UserError(f"{folder}: no weights: looked for {', '.join(names)}{hint}")


def _file_name(name: object) -> str:
    """An index may name files beside it only: a path could lead anywhere."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{name!r} is no plain file name")
    return name


def _check_weights(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file, which the index names: the checkpoint is not whole")
    with file.open("rb") as f:
        if f.read(20) == b"version https://git-":
            raise UserError(f"{file}: a git-lfs pointer and not the weights: run `git lfs pull` in its repository")


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}): copy or download it again") from None


def _open_torch(file: Path) -> dict[str, Tensor]:
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of torch before 1.6, the public XLM-R ones among them, are no zip archives and cannot be mapped.
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own text advises to switch the protection off.
        if "GLOBAL" in str(error) or "Unsupported" in str(error):
            what = "holds code or objects beside tensors, and is not opened: save it as safetensors"
        else:
            what = "not a whole torch file: copy or download it again"
        raise UserError(f"{file}: {what}") from None
    except Exception as error:
        # Broken bytes make torch's readers fail in any way: AssertionError, struct.error, TypeError, ...
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: not a whole torch file ({reason}): copy or download it again") from None
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise UserError(f"{file}: expected a flat mapping of names to tensors, got something else")
    return dict(loaded)


def _describe(file: Path, handle: Any) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    if isinstance(handle, dict):
        for name, tensor in handle.items():
            yield name, tuple(tensor.shape), tensor.dtype
        return
    for name in handle.keys():  # noqa: SIM118 (no mapping)
        view = handle.get_slice(name)
        if view.get_dtype() not in DTYPES:
            raise UserError(f"{file}: {name}: dtype {view.get_dtype()} is not one this program reads")
        yield name, tuple(view.get_shape()), DTYPES[view.get_dtype()]


def stored_values(folder: Path) -> int:
    """How many numbers a folder's weights hold; four bytes each in fp32. Reads no tensor."""
    return sum(math.prod(stored.shape) for stored in open_tensors(folder).stored.values())
