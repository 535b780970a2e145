"""How much arithmetic a sequence takes, and how fast a machine does arithmetic."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.int8 import Int8Linear

# The side of the square product that tells a machine's rate, and how often it is done.
SIDE = {"cpu": 1536, "cuda": 8192}
TIMES = 5


def product_operations(config: XLMRobertaConfig) -> float:
    """Floating point operations of the encoder's products with weights, a token: two for each weight of a layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (8.0 * hidden**2 + 4.0 * hidden * inner)


def attention_operations(config: XLMRobertaConfig, lengths: NDArray[np.int64]) -> float:
    """Those of attention for sequences of these lengths: `4 hidden n^2` a layer, for scores and for the mixing."""
    return float(4.0 * config.num_hidden_layers * config.hidden_size * (lengths.astype(float) ** 2).sum())


def matrix_rate(device: torch.device, dtype: torch.dtype, copies: int, *, eight_bits: bool = False) -> float:
    """Operations a second of square products, measured: on a CPU by `copies` threads at once, as encoders work."""
    side = SIDE.get(device.type, SIDE["cpu"])
    with ThreadPoolExecutor(copies) as pool:
        work = [
            partial(_squares, device, dtype, side, eight_bits=eight_bits)
            for _ in range(1 if device.type == "cuda" else copies)
        ]
        return sum(rate.result() for rate in [pool.submit(one) for one in work])


@torch.inference_mode()
def _squares(device: torch.device, dtype: torch.dtype, side: int, *, eight_bits: bool) -> float:
    if device.type == "cpu":
        torch.set_num_threads(1)
    x = torch.randn(side, side, device=device).to(dtype)
    layer: nn.Module = nn.Linear(side, side, bias=False, device=device, dtype=dtype)
    if eight_bits:
        layer = Int8Linear(layer)  # type: ignore[arg-type]
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        layer(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * side**3 / statistics.median(seconds[1:])
