"""How fast a machine does matmuls."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import nn

from xlmr_ray.model.linear import OneDnnLinear, supported

# The side of the square matmul that tells a machine's rate, and how often it is done.
SIDE = {"cpu": 1536, "cuda": 8192}
TIMES = 5


def matrix_rate(
    device: torch.device, dtype: torch.dtype, copies: int, instead: Callable[[nn.Linear], nn.Module] | None = None
) -> float:
    """Operations a second of square matmuls, measured: on a CPU by `copies` threads at once, as encoders work.
    `instead` makes the layer that is measured of a linear one.
    """
    side = SIDE.get(device.type, SIDE["cpu"])
    with ThreadPoolExecutor(copies) as pool:
        work = [partial(_squares, device, dtype, side, instead) for _ in range(1 if device.type == "cuda" else copies)]
        return sum(rate.result() for rate in [pool.submit(one) for one in work])


@torch.inference_mode()
def _squares(
    device: torch.device, dtype: torch.dtype, side: int, instead: Callable[[nn.Linear], nn.Module] | None
) -> float:
    if device.type == "cpu":
        torch.set_num_threads(1)
    x = torch.randn(side, side, device=device).to(dtype)
    linear = nn.Linear(side, side, device=device, dtype=dtype)
    if instead is None and device.type == "cpu" and supported(dtype):
        instead = partial(OneDnnLinear, prepack=True)  # what the encoder computes with
    layer = linear if instead is None else instead(linear)
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        layer(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2.0 * side**3 / statistics.median(seconds[1:])
