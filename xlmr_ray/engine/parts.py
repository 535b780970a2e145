"""A batch in parts, each for one task: what its head gets to see."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.model.batch_invariance import rows_computed
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.model.layout import Packed
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.tasks.task import EncoderTask


@dataclass(frozen=True)
class BatchPart:
    """The `count` sequences of a batch from number `first` on, for one task. `head` is the index of its head in the
    engine.
    """

    task: EncoderTask
    head: int
    first: int
    count: int


def part_of(batch: PackedBatch, hidden: Tensor, part: BatchPart) -> tuple[PackedBatch, Tensor]:
    """A part's sequences as a separate batch, in the CPU's memory as `batch` is, and their hidden states
    `(…, M, hidden)` out of `hidden (…, T, hidden)`. Ids and positions, which only the encoder reads, are without
    filler.
    """
    begin = sum(batch.lengths[: part.first])
    lengths = batch.lengths[part.first : part.first + part.count]
    total = sum(lengths)
    window, filler = slice(begin, begin + total), rows_computed(total) - total
    targets = target_places = None
    if batch.targets is not None:
        targets = F.pad(batch.targets[window], (0, filler), value=IGNORED)
        target_places = torch.from_numpy(np.flatnonzero(targets.numpy() != IGNORED))
    layout = Packed.of([*lengths, *([filler] if filler else [])], causal=batch.layout.causal)
    own = PackedBatch(batch.input_ids[window], batch.position_ids[window], layout, part.count, targets, target_places)
    return own, F.pad(hidden.narrow(-2, begin, total), (0, 0, 0, filler))
