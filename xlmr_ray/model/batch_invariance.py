"""Keeps a row's result independent of the rows that are computed with it, and checks on this machine that it is.

On the CPU, matmuls of one row to fifteen may take other kernels, which add in another order (differences of 1e-6 in
float32): every matmul gets a multiple of 16 rows. For what linear layers need beyond that, see `model/linear.py`.
Attention goes over runs of sequences of equal length, and torch's kernel splits a sequence by its length only; norms,
activations and pooling go row by row.
"""

import logging

import torch
from torch import Tensor, nn

from xlmr_ray.model.layout import Packed
from xlmr_ray.model.linear import OneDnnLinear, use_tiles

log = logging.getLogger(__name__)

ROWS = 16
# A last layer over the vocabulary takes too long for a check, and MKL split no sum for as many outputs.
MOST_OUTPUTS = 8192
# Rows of a call where the number of rows must not matter.
TILE = 128
_differences: dict[tuple[object, ...], float] = {}


def rows_computed(rows: int) -> int:
    """How many rows are computed where `rows` are asked for: the next multiple of 16."""
    return max(-(-rows // ROWS), 1) * ROWS


def pad_rows(x: Tensor) -> Tensor:
    """`x (N, ...)` with rows of zeros appended, up to `rows_computed(N)`."""
    return torch.cat([x, x.new_zeros(rows_computed(len(x)) - len(x), *x.shape[1:])])


def keep_batch_invariance(layers: nn.ModuleList, heads: nn.Module, hidden_size: int, dtype: torch.dtype) -> None:
    """Looks whether this CPU's kernels give a sequence other results beside others than by itself. If so, linear layers
    are computed in tiles of a fixed number of rows; where that does not help, one line warns.

    `layers` are an encoder's, `(T, hidden)` and a layout to a tuple whose first is `(T, hidden)`; one stands for all.
    Takes milliseconds (about twice the pass of 600 tokens through one layer), once a process for each number of
    threads, dtype and sizes.
    """
    threads = torch.get_num_threads()
    key = (threads, dtype, repr(layers[0]), repr(heads))
    for tile in (None, TILE):
        for module in (layers, heads):
            use_tiles(module, tile)
        if (*key, tile) not in _differences:
            _differences[*key, tile] = largest_difference(layers[0], heads, hidden_size, dtype)
        if not _differences[*key, tile]:
            return
    for module in (layers, heads):
        use_tiles(module, None)
    log.warning(
        "this CPU's %s kernels round otherwise in a larger batch (by up to %.0e in one layer, %d threads, %s): "
        "here a document's result is not the same to the last bit whatever else is in its batch",
        str(dtype).removeprefix("torch."),
        _differences[*key, None],
        threads,
        torch.backends.cpu.get_cpu_capability(),
    )


@torch.inference_mode()
def largest_difference(layer: nn.Module, heads: nn.Module, hidden_size: int, dtype: torch.dtype) -> float:
    """Between results by itself and beside others; 0.0 where all are equal to the last bit."""
    random = torch.Generator().manual_seed(0)
    # Enough rows in all for kernels of large batches: MKL splits sums up to half as many rows as a layer has outputs.
    lengths = [5, 37, 37, 130, hidden_size // 2 + 64]
    x = torch.randn(sum(lengths), hidden_size, generator=random).to(dtype)
    together: Tensor = layer(x, Packed.of(lengths))[0]
    found = [0.0]
    start = 0
    for length in lengths[:-1]:
        own = slice(start, start + length)
        rows = pad_rows(x[own])
        filler = len(rows) - length
        alone = layer(rows, Packed.of([length, *([filler] if filler else [])]))[0][:length]
        found.append(_largest(alone, together[own]))
        start += length
    seen: set[tuple[int, int]] = set()
    for linear in heads.modules():
        if isinstance(linear, nn.Linear | OneDnnLinear) and linear.out_features <= MOST_OUTPUTS:
            if (sizes := (linear.in_features, linear.out_features)) in seen:
                continue
            seen.add(sizes)
            bias_or_weight = linear.bias if linear.bias is not None else next(linear.parameters())
            many = torch.randn(rows_computed(linear.in_features), linear.in_features, generator=random)
            many = many.to(bias_or_weight.dtype)
            found.append(_largest(linear(many[:ROWS]), linear(many)[:ROWS]))
    return max(found)


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
