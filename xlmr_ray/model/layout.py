"""How tokens form sequences: packed (one after another, no padding anywhere) or padded (batch, length, mask)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """N sequences one after another in T tokens; token tensors are `(T, ...)`.

    `lengths` are known on the CPU, so that nothing has to be read back from a GPU; `cu_seqlens` is `int32 (N + 1)` on
    the tokens' device. `causal`: a token looks only at itself and those before it.
    """

    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    causal: bool = False

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu", *, causal: bool = False) -> "Packed":
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(ends.to(device, non_blocking=True), tuple(lengths), causal)

    @property
    def max_seqlen(self) -> int:
        return max(self.lengths, default=0)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """`(first token, sequences, length)` of every run of neighbours of equal length: what one dense kernel call
        can take.
        """
        start = 0
        for length, group in groupby(self.lengths):
            count = sum(1 for _ in group)
            yield start, count, length
            start += count * length


@dataclass(frozen=True, eq=False)
class Padded:
    """B sequences of S positions; token tensors are `(B, S, ...)`. The queries are the last positions of the keys: all
    of them, or those that a cache does not hold.

    `mask`, broadcastable to `(B, heads, queries, keys)`, is boolean, True where attention may look, or of floats that
    are added to the scores; None where nothing is hidden, because a mask of ones rules out the fastest kernels.
    `causal`: beside that, a token looks only at itself and those before it.
    """

    mask: Tensor | None = None
    causal: bool = False


Layout = Packed | Padded
