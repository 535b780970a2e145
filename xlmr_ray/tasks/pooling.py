"""Hidden states of sequences to one vector each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from xlmr_ray.model.packed_batch import PackedBatch


POOLINGS = ("cls", "mean", "max", "mean_sqrt_len")


def pool(pooling: str, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Hidden states `(T, hidden)` of a packed batch to a vector a sequence `(N, hidden)`, in fp32.

    Sums run over a sequence's own tokens in their order, so that a vector does not depend on the batch.
    """
    import torch

    if pooling == "cls":
        return batch.first(hidden).float()
    lengths = batch.layout.cu_seqlens[: batch.sequences + 1].diff().long()
    own = hidden[: batch.tokens].float()
    if pooling == "max":
        return torch.segment_reduce(own, "max", lengths=lengths, unsafe=True)
    total = torch.segment_reduce(own, "sum", lengths=lengths, unsafe=True)
    return total / (lengths.float().sqrt() if pooling == "mean_sqrt_len" else lengths)[:, None]
