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
    """Floating point operations of the encoder's products for so many tokens, of sequences as long as those encoded.

    Two for each weight of a layer and token, `8 h^2 + 4 h i`, and `4 h n` for attention in a sequence of n tokens;
    embeddings, norms and heads are left out, as is usual for a model's utilization.
    """
    lengths = np.concatenate([pc.list_value_length(table["input_ids"]).to_numpy() for table in encoded]).astype(float)
    mean = float((lengths**2).sum() / max(1.0, lengths.sum()))  # of the sequence that a token is in
    hidden, inner = config.hidden_size, config.intermediate_size
    return tokens * config.num_hidden_layers * (8.0 * hidden**2 + 4.0 * hidden * inner + 4.0 * hidden * mean)
