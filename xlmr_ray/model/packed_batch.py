"""A batch of whole sequences, one after another, as the model takes it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.batch_invariance import rows_computed
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.model.layout import Packed


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """`input_ids` and `position_ids` are `int64 (T)`; `layout` says how they form sequences; `targets` are
    `int64 (T)`, -100 where a token has none, or None where no task has any; `target_places` are the tokens that have
    one, found on the CPU, since a GPU would have to be waited for.

    The first `sequences` of them are the caller's; a last one of filler tokens may follow (see
    `model/batch_invariance.py`).
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Packed
    sequences: int
    targets: Tensor | None = None
    target_places: Tensor | None = None

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

    def at_targets(self, hidden: Tensor) -> Tensor:
        """The hidden states `(M, hidden)` of the M tokens that have a target, out of `hidden (T, hidden)`."""
        assert self.target_places is not None
        return hidden[self.target_places]

    def to(self, device: torch.device) -> "PackedBatch":
        """On another device; the copy does not wait where the memory is pinned."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(self.position_ids),
            layout=replace(self.layout, cu_seqlens=change(self.layout.cu_seqlens)),
            targets=None if self.targets is None else change(self.targets),
            target_places=None if self.target_places is None else change(self.target_places),
        )


def pack(
    ids: NDArray[np.int32],
    row_splits: NDArray[np.int64],
    chosen: NDArray[np.int64],
    config: XLMRobertaConfig,
    *,
    targets: NDArray[np.int32] | None = None,
) -> PackedBatch:
    """The `chosen` sequences of ragged ids (sequence i is `ids[row_splits[i]:row_splits[i + 1]]`) as one batch, with
    their `targets`, which are split as the ids are; causal where the model is a decoder.

    Positions are made here, on the CPU: on a GPU nothing has to be scanned. Raises UserError for a token that the model
    does not have, before it can get there.
    """
    starts = row_splits[chosen]
    lengths = row_splits[chosen + 1] - starts
    total = int(lengths.sum())
    filler = rows_computed(total) - total
    first = np.cumsum(lengths) - lengths
    within = np.arange(total) - np.repeat(first, lengths)
    where = np.repeat(starts, lengths) + within
    out_ids = np.full(total + filler, config.pad_token_id, np.int64)
    out_ids[:total] = ids[where]
    positions = np.full(total + filler, config.first_position, np.int64)
    positions[:total] = within + config.first_position
    if config.skips_padding:
        _skip_padding(positions[:total], out_ids[:total], first, lengths, config.pad_token_id)
    out_targets = target_places = None
    if total and not 0 <= int(out_ids.min()) <= int(out_ids.max()) < config.vocab_size:
        raise UserError(
            f"token ids: got {out_ids.min()} to {out_ids.max()}, the model's are 0 to {config.vocab_size - 1}"
        )
    if targets is not None:
        filled = np.full(total + filler, IGNORED, np.int64)
        filled[:total] = targets[where]
        out_targets = torch.from_numpy(filled)
        target_places = torch.from_numpy(np.flatnonzero(filled != IGNORED))
    layout = Packed.of([*lengths.tolist(), *([filler] if filler else [])], causal=config.is_decoder)
    return PackedBatch(
        torch.from_numpy(out_ids), torch.from_numpy(positions), layout, len(chosen), out_targets, target_places
    )


def _skip_padding(
    positions: NDArray[np.int64],
    ids: NDArray[np.int64],
    first: NDArray[np.int64],
    lengths: NDArray[np.int64],
    pad_token_id: int,
) -> None:
    """Corrects, in place, the positions `(T)` of sequences with padding ids in them, which a text that says "<pad>"
    has: the padding id is at `pad_token_id` and is not counted (see `positions_from_ids`).
    """
    padding = ids == pad_token_id
    if not padding.any():
        return
    skipped = np.cumsum(padding)
    before = skipped[first[lengths > 0]] - padding[first[lengths > 0]]
    positions -= skipped - np.repeat(before, lengths[lengths > 0])
    positions[padding] = pad_token_id
