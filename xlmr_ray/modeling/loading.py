"""What `from_pretrained` of a model is given, checked: dtype, configuration, quantization, devices, and transformers'
arguments that change nothing here or are refused.
"""

import contextlib
import difflib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor, nn

from xlmr_ray.checkpoint.device_map import CPU, DeviceMap, Devices, automatic, checked_device
from xlmr_ray.checkpoint.load import LoadReport
from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig
from xlmr_ray.checkpoint.save import write_folder
from xlmr_ray.config import ALIASES, PARAMETERS, XLMRobertaConfig
from xlmr_ray.config import LOADING as OF_CONFIG
from xlmr_ray.errors import UserError
from xlmr_ray.foreign import Foreign

LOADING = Foreign(
    "from_pretrained",
    ignored={
        **OF_CONFIG.ignored,
        "low_cpu_mem_usage": "tensors are always read one by one",
        "use_safetensors": "they come first, and .bin files where there are none",
        "weights_only": "no code in a file of weights is ever run",
        "disable_mmap": "nothing of a file stays mapped",
        "offload_folder": "what no GPU has room for is on the CPU, not on a disk",
        "offload_state_dict": "what no GPU has room for is on the CPU, not on a disk",
        "offload_buffers": "there are no buffers",
        "tqdm_class": "progress is the hub client's",
        "_fast_init": "weights that are in the files are never made before",
    },
    refused={
        **OF_CONFIG.refused,
        "from_tf": "convert the checkpoint to safetensors with an older transformers",
        "from_flax": "convert the checkpoint to safetensors with an older transformers",
        "variant": "a folder has one set of weights: name a folder with the other",
        "key_mapping": "rename the keys of a state_dict and give that",
        "adapter_kwargs": "load the adapter with peft",
        "tp_plan": "a model lies whole, or by layers (device_map), on devices",
        "tp_size": "a model lies whole, or by layers (device_map), on devices",
        "device_mesh": "a model lies whole, or by layers (device_map), on devices",
        "distributed_config": "a model lies whole, or by layers (device_map), on devices",
        "use_kernels": "choose attention by attn_implementation",
        "kernel_config": "choose attention by attn_implementation",
        "allow_all_kernels": "choose attention by attn_implementation",
        "experts_implementation": "an XLM-R has no experts",
        "fusion_config": "the engine fuses q, k and v by itself",
    },
)
# What a misspelt argument may mean.
ARGUMENTS = ("attn_implementation", "device_map", "ignore_mismatched_sizes", "local_files_only", "quantization_config")
# Transformers' ways to lay layers on GPUs; the numbers are the same, however they lie.
SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


def configuration(given: Any) -> XLMRobertaConfig | None:
    """A configuration that is given as one of ours, one of transformers', or where to find it; None for None."""
    if given is None or isinstance(given, XLMRobertaConfig):
        return given
    if isinstance(given, str | Path):
        found: XLMRobertaConfig = XLMRobertaConfig.from_pretrained(given)
        return found
    if not callable(getattr(given, "to_dict", None)):
        raise UserError(f"config: expected an XLMRobertaConfig, or a folder or hub id, got {type(given).__name__}")
    return XLMRobertaConfig.from_dict(given.to_dict())


def dtype_of(dtype: torch.dtype | str | None, torch_dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by either of the argument's names; None for the files' own. Raises UserError."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise UserError(f"dtype {dtype} and torch_dtype {torch_dtype}: two names of one argument: give one")
    given = torch_dtype if dtype is None else dtype
    if given is None or given == "auto":
        return None
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UserError(f"dtype {given!r} is no floating point type of torch; float32, float16 and bfloat16 are usual")
    return found


def quantization_of(given: Any) -> BitsAndBytesConfig | None:
    """The configuration from an object of ours, of transformers', or a dictionary. Raises UserError."""
    if given is None or isinstance(given, BitsAndBytesConfig):
        found = given
    else:
        values = given.to_dict() if callable(getattr(given, "to_dict", None)) else given
        if not isinstance(values, Mapping):
            raise UserError(f"quantization_config: expected a BitsAndBytesConfig or a dictionary, got {given!r}")
        found = BitsAndBytesConfig.from_dict(values)
    if found is not None:
        found.bits  # noqa: B018 (raises where it asks for nothing)
    return found


def check_names(names: Iterable[str]) -> None:
    """Raises UserError for a name that is no argument and no parameter of the configuration."""
    for name in sorted({*names} - {*PARAMETERS, *ALIASES}):
        if name in {f.name for f in fields(BitsAndBytesConfig)}:
            raise UserError(f"from_pretrained: {name} goes into quantization_config=BitsAndBytesConfig({name}=…)")
        near = difflib.get_close_matches(name, [*PARAMETERS, *ARGUMENTS], 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise UserError(f"from_pretrained: {name!r} is no argument and no parameter of XLMRobertaConfig{hint}")


def placement(
    model: nn.Module,
    device: torch.device | str | None,
    device_map: str | int | torch.device | DeviceMap | None,
    max_memory: Mapping[int | str, int | str] | None,
    dtype: torch.dtype | None,
    quantization: BitsAndBytesConfig | None,
    quantized_on_disk: bool,
) -> Devices:
    """The device, or the map of devices, that the arguments mean. Raises UserError."""
    if device is not None and device_map is not None:
        raise UserError("from_pretrained: give device or device_map, not both")
    if device is None and device_map is None:
        on_gpu = (quantization is not None or quantized_on_disk) and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else CPU)
    if isinstance(device_map, Mapping):
        return {name: checked_device(where) for name, where in device_map.items()}
    if device_map not in SPREAD:
        chosen = device if device_map is None else device_map
        assert chosen is not None
        return checked_device(chosen)
    if torch.cuda.device_count() == 0:
        return torch.device(CPU)
    each = 4 if dtype is None else dtype.itemsize
    most = {f"cuda:{gpu}" if isinstance(gpu, int) else gpu: bytes_of(size) for gpu, size in (max_memory or {}).items()}
    return automatic(model, each, each if quantization is None else quantization.bits / 8, most)


def bytes_of(size: int | str) -> int:
    """Bytes of a number, or of "10GB" or "10GiB". Raises UserError."""
    try:
        return TypeAdapter(ByteSize).validate_python(size)
    except ValidationError:
        raise UserError(f"max_memory: expected a number of bytes or a string like '10GB', got {size!r}") from None


@contextlib.contextmanager
def folder_of(state_dict: Mapping[str, Tensor] | None, config: XLMRobertaConfig, folder: Path | None) -> Iterator[Path]:
    """Where the tensors are: the checkpoint's folder, or one that a `state_dict` is written to, to be read like it."""
    if state_dict is None:
        assert folder is not None
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        write_folder(state_dict, config, Path(temporary) / "model")
        yield Path(temporary) / "model"


def loading_info(report: LoadReport) -> dict[str, Any]:
    """A report as transformers gives it: names, and of misshapen tensors what the files have and what the model."""
    return {
        "missing_keys": {*report.missing},
        "unexpected_keys": {*report.unexpected},
        "mismatched_keys": {*report.misfits},
        "error_msgs": [],
    }
