"""A batch of whole sequences, one after another, as the model takes it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlmr_ray.model.layout import Packed
from xlmr_ray.model.steady import steady_rows


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """`input_ids` and `position_ids` are `int64 (T)`; `layout` says how they form sequences.

    The first `sequences` of them are the caller's; a last one of filler tokens may follow (see `model/steady.py`).
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Packed
    sequences: int

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each of the caller's sequences."""
        return self.layout.lengths[: self.sequences]

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    def first(self, hidden: Tensor) -> Tensor:
        """The first token's hidden state `(N, hidden)` of each sequence, out of `hidden (T, hidden)`."""
        return hidden[self.layout.cu_seqlens[: self.sequences].long()]

    def to(self, device: torch.device) -> "PackedBatch":
        """On another device; the copy does not wait where the memory is pinned."""
        layout = Packed(self.layout.cu_seqlens.to(device, non_blocking=True), self.layout.lengths)
        ids, positions = (x.to(device, non_blocking=True) for x in (self.input_ids, self.position_ids))
        return PackedBatch(ids, positions, layout, self.sequences)

    def pin_memory(self) -> "PackedBatch":
        layout = Packed(self.layout.cu_seqlens.pin_memory(), self.layout.lengths)
        return PackedBatch(self.input_ids.pin_memory(), self.position_ids.pin_memory(), layout, self.sequences)


def pack(
    ids: NDArray[np.int32], row_splits: NDArray[np.int64], chosen: NDArray[np.int64], pad_token_id: int
) -> PackedBatch:
    """The `chosen` sequences of ragged ids (sequence i is `ids[row_splits[i]:row_splits[i + 1]]`) as one batch.

    Positions count from `pad_token_id + 1` in every sequence. They are made here, on the CPU: on a GPU nothing has to
    be scanned.
    """
    starts = row_splits[chosen]
    lengths = row_splits[chosen + 1] - starts
    total = int(lengths.sum())
    filler = steady_rows(total) - total
    first = np.cumsum(lengths) - lengths
    within = np.arange(total) - np.repeat(first, lengths)
    out_ids = np.full(total + filler, pad_token_id, np.int64)
    out_ids[:total] = ids[np.repeat(starts, lengths) + within]
    positions = np.full(total + filler, pad_token_id + 1, np.int64)
    positions[:total] = within + (pad_token_id + 1)
    layout = Packed.of([*lengths.tolist(), *([filler] if filler else [])])
    return PackedBatch(torch.from_numpy(out_ids), torch.from_numpy(positions), layout, len(chosen))
