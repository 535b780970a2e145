"""Keeps a row's result independent of how many rows are computed with it.

A matrix product over very few rows takes another kernel, which adds in another order: seen with the CPU build of
torch 2.13 (MKL) for 1 to 3 rows a thread, differences of 1e-6. From 16 rows a thread on, results are equal to the
last bit whatever the other rows hold, so every product gets at least that many.
"""

import torch
from torch import Tensor

ROWS = 16


def steady_rows(rows: int) -> int:
    """The number of rows to compute with where `rows` are wanted: a multiple of 16, and at least 16 for each thread."""
    return max(-(-rows // ROWS) * ROWS, ROWS * torch.get_num_threads())


def steadied(x: Tensor) -> Tensor:
    """`x (N, ...)` with rows of zeros appended, up to `steady_rows(N)`."""
    return torch.cat([x, x.new_zeros(steady_rows(len(x)) - len(x), *x.shape[1:])])
