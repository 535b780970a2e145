"""Only the word embeddings that a training's examples use are trained.

XLM-R's table has 250,002 rows, more than half of a base model's numbers; 400 pages of help had 2 % of them. AdamW
moves a row that never has a gradient by its decay only, so the others need no gradients and no moments: a step is
quicker, and what is kept of a training is smaller (of e5 a fifth).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.optimizer import rate_at
from xlmr_ray.train.steps import TrainSteps


class UsedRows(nn.Embedding):
    """The rows of a table that some ids have: `used (U)`, ascending, of `whole (V, hidden)`."""

    place: Tensor

    def __init__(self, whole: nn.Embedding, used: NDArray[np.int64]) -> None:
        rows = torch.from_numpy(used).to(whole.weight.device)
        pad = None if whole.padding_idx is None else int(np.searchsorted(used, whole.padding_idx))
        super().__init__(len(used), whole.embedding_dim, pad, _weight=whole.weight.detach()[rows])
        # An id that was not used is an error of the lookup.
        place = torch.full((whole.num_embeddings,), len(used), device=rows.device)
        place[rows] = torch.arange(len(used), device=rows.device)
        self.register_buffer("place", place, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `(*tokens)` of the whole table to `(*tokens, hidden)`."""
        return F.embedding(self.place[ids], self.weight, self.padding_idx)


def keep_used(model: Pretrained, ids: Sequence[NDArray[np.int32]]) -> nn.Embedding | None:
    """Puts the rows that `ids` have in the place of the word embeddings. Returns the whole table; None where it stays,
    since all of it is trained (as a language model's last layer) or none.
    """
    whole = model.get_input_embeddings()
    assert isinstance(whole, nn.Embedding)
    owners = sum(one is whole.weight for part in model.modules() for one in part.parameters(recurse=False))
    if owners > 1 or not whole.weight.requires_grad:
        return None
    padding = [] if whole.padding_idx is None else [whole.padding_idx]
    model.set_input_embeddings(UsedRows(whole, np.unique(np.concatenate([*ids, padding]).astype(np.int64))))
    return whole


@contextmanager
def whole_words(model: Pretrained, whole: nn.Embedding | None, decay: float) -> Iterator[None]:
    """Meanwhile the model has the whole table: the used rows as they are trained, the others times `decay`."""
    used = model.get_input_embeddings()
    if whole is None or not isinstance(used, UsedRows):
        yield
        return
    table = whole.weight.detach() * decay
    there = used.place < used.num_embeddings
    table[there] = used.weight.detach()[used.place[there]]
    model.set_input_embeddings(nn.Embedding(len(table), used.embedding_dim, whole.padding_idx, _weight=table))
    try:
        yield
    finally:
        model.set_input_embeddings(used)


def decay_of(job: FinetuneJob, steps: TrainSteps, done: int) -> float:
    """What AdamW leaves of a number without gradients after so many steps."""
    return math.prod(1 - rate_at(step, steps.count, job) * job.weight_decay for step in range(done))
