"""Where a shard was scored, by what, and how much arithmetic that took: for the run's report."""

import functools
import platform
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.operations import attention_operations, matmul_operations


def host() -> str:
    """The machine's name: a pod's in Kubernetes."""
    return socket.gethostname()


@functools.cache
def device_name(device: torch.device) -> str:
    """What people call the device: the GPU's or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()} (CPU)"
    return f"{platform.processor() or platform.machine()} (CPU)"


def operations(config: XLMRobertaConfig, tokens: int, encoded: Sequence[pa.Table]) -> float:
    """Floating point operations of the encoder for so many tokens, of sequences as long as those encoded."""
    lengths = np.concatenate([pc.list_value_length(table["input_ids"]).to_numpy() for table in encoded])  # (N,)
    attention = attention_operations(config, lengths) / max(1.0, float(lengths.sum()))
    return tokens * (matmul_operations(config) + attention)
