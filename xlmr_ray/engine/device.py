"""Where and in what a model computes: device, dtype, token budget, and how a lack of memory is recognized."""

from collections.abc import Mapping

import torch
from torch import Tensor

from xlmr_ray.checkpoint.quantization import SCHEMES
from xlmr_ray.errors import UserError
from xlmr_ray.model.quantized.fp8 import CAPABILITY as FP8
from xlmr_ray.model.quantized.int8 import LARGEST_CODES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# The compute capability from which on a GPU's matrix units know bfloat16 (Ampere):
# https://docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html
BFLOAT16 = (8, 0)


def gpu_dtype(capability: tuple[int, int]) -> str:
    """What `dtype: auto` is on a GPU of that compute capability. Half precision, whatever the checkpoint's files hold:
    in float32 a GPU has neither packed attention nor its matrix units.
    """
    return "bfloat16" if capability >= BFLOAT16 else "float16"


def device_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that `auto` or names stand for. Raises UserError where it is not there or not known."""
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: torch {torch.__version__} finds no GPU; use device: cpu or auto")
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = gpu_dtype(torch.cuda.get_device_capability(where)) if where.type == "cuda" else "float32"
    return where, DTYPES[dtype]


def check_int8(device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError where the device has no matmuls in eight bits."""
    if device.type != "cpu":
        raise UserError(
            f"quantization int8 is for CPUs, got device {device}; on a GPU take {', '.join(SCHEMES)}, or none"
        )
    if dtype not in LARGEST_CODES:
        raise UserError(
            f"quantization int8 computes in float32 or bfloat16 between its matmuls, got dtype {dtype}; use dtype: auto"
        )


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError where the device has no matmuls of eight-bit floats."""
    if device.type != "cuda":
        raise UserError(f"quantization fp8 is for GPUs, got device {device}; on a CPU take int8")
    if torch.cuda.get_device_capability(device) < FP8:
        got = "{}.{}".format(*torch.cuda.get_device_capability(device))
        raise UserError(
            f"quantization fp8 wants a GPU of compute capability {FP8[0]}.{FP8[1]} or newer, got {got} "
            f"({torch.cuda.get_device_name(device)}); leave it out"
        )
    if dtype is not torch.bfloat16:
        raise UserError(f"quantization fp8 computes in bfloat16 between its matmuls, got {dtype}; use dtype: auto")


def token_budget(max_tokens: int | str, device: torch.device, defaults: Mapping[str, int]) -> int:
    """`max_tokens`, for `auto` the default of the device's type. Raises UserError for what is neither."""
    if max_tokens == "auto":
        return defaults.get(device.type, defaults["cpu"])
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise UserError(f"max_tokens must be auto or a whole number from 1 on, got {max_tokens!r}")
    return max_tokens


def to_host(x: Tensor) -> Tensor:
    """`x` in the CPU's memory. From a GPU it is on its way there until that is synchronized: only copies into pinned
    memory go on while the next batch computes, others would be waited for.
    """
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)
