"""Tensors by the names they have on disk, read one at a time. Nothing here runs code that a file brings."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from xlmr_ray.checkpoint.folder import encoder_folder, model_folder
from xlmr_ray.checkpoint.names import DECODER_WEIGHT, WORDS, canonical_names, is_encoder
from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# Types of a safetensors file, by torch's names.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True)
class Stored:
    """A tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    dtype_name: str  # torch's, such as `float32`
    nbytes: int
    start: int = 0  # of its bytes in a safetensors file

    @property
    def dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.dtype_name)
        return found


class TensorFiles:
    """The tensors of some files. `stored` tells of each; `read` gives one, backed by the file (copy it to keep it).

    Of safetensors files only `read` needs torch, which takes seconds to import.
    """

    def __init__(self, files: list[Path], only: dict[str, Path] | None = None) -> None:
        """Opens the files. `only` is an index's map of names to files. Raises UserError for one that is not whole."""
        self.files = tuple(files)
        self.stored: dict[str, Stored] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            _check_weights(file)
            if file.suffix == ".safetensors":
                found = _of_safetensors(file)
            else:
                self._open[file] = _open_torch(file)
                found = _of_torch(file, self._open[file])
            self.stored.update({one: is_there for one, is_there in found if only is None or only.get(one) == file})
        for name, file in (only or {}).items():
            if name not in self.stored:
                raise UserError(f"{file}: no tensor {name!r}, which the index says is there")

    def joined(self, other: TensorFiles, names: Iterable[str]) -> TensorFiles:
        """The tensors of those names, and all of the other's."""
        both = TensorFiles([])
        both.files = self.files + other.files
        both.stored = {name: self.stored[name] for name in names} | other.stored
        both._open = self._open | other._open
        return both

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, with the shape and dtype that it has on disk."""
        file = self.stored[name].file
        if file not in self._open:
            self._open[file] = _open_safetensors(file, "pt")
        handle = self._open[file]
        tensor: Tensor = handle[name] if isinstance(handle, dict) else handle.get_tensor(name)
        return tensor

    def content(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one tensor `(nbytes,)`, in the order of its numbers."""
        stored = self.stored[name]
        if not stored.nbytes:
            return np.empty(0, np.uint8)
        if stored.file.suffix == ".safetensors":
            return np.memmap(stored.file, np.uint8, "r", stored.start, (stored.nbytes,))
        import torch

        found: NDArray[np.uint8] = self.read(name).contiguous().reshape(-1).view(torch.uint8).numpy()
        return found


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


def _open_safetensors(file: Path, framework: str) -> Any:
    try:
        return safe_open(str(file), framework=framework, device="cpu")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}): copy or download it again") from None


def _open_torch(file: Path) -> dict[str, Tensor]:
    import torch

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
    if not isinstance(loaded, dict) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise UserError(f"{file}: expected a flat mapping of names to tensors, got something else")
    return dict(loaded)


def _of_torch(file: Path, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Stored]]:
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield name, Stored(file, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())


def _of_safetensors(file: Path) -> Iterator[tuple[str, Stored]]:
    """By the header, whose form https://huggingface.co/docs/safetensors says: its length in 8 bytes, JSON, the data."""
    _open_safetensors(file, "numpy")  # is whole, and what the header says of it is so
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    for name, tensor in header.items():
        if tensor["dtype"] not in DTYPES:
            raise UserError(f"{file}: {name}: dtype {tensor['dtype']} is not one this program reads")
        begin, end = tensor["data_offsets"]
        yield name, Stored(file, tuple(tensor["shape"]), DTYPES[tensor["dtype"]], end - begin, 8 + length + begin)


def stored_values(folder: Path) -> int:
    """How many numbers a folder's weights hold; four bytes each in fp32. Reads no tensor."""
    return sum(math.prod(stored.shape) for stored in open_tensors(folder).stored.values())
