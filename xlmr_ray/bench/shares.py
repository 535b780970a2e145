"""Where an encoder's time goes, by torch's profiler."""

import os
from collections.abc import Callable

# Before the profiler starts; it writes to standard error.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Operators by what their names hold, the first that fits; kernels of a GPU have other names.
KINDS = (
    ("attention", ("scaled_dot_product", "flash", "fmha", "varlen", "kernels::attend")),
    ("quantizing", ("aten::amax", "aten::amin", "aten::addr", "aten::addcmul", "aten::sub", "aten::mul_", "kernels::")),
    (
        "products",
        ("addmm", "aten::mm", "aten::linear", "aten::bmm", "linear_pointwise", "qlinear", "gemm", "nvjet", "cutlass"),
    ),
)
NAMES = ("products", "attention", "quantizing", "rest")


def shares(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """The shares of `products`, `attention`, `quantizing` and the `rest` in the time that `work` takes."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        work()
    seconds = dict.fromkeys(NAMES, 0.0)
    for event in profiled.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue  # an operator's time is its kernels', which are other events
        took = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = next((kind for kind, parts in KINDS if any(part in event.key for part in parts)), "rest")
        seconds[kind] += took
    total = sum(seconds.values()) or 1.0
    return {name: took / total for name, took in seconds.items()}
