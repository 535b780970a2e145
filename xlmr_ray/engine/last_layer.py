"""The last layer only where a head reads: most of its work is for tokens one by one, after they have been mixed."""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from xlmr_ray.model.batch_invariance import rows_computed
from xlmr_ray.model.packed_batch import PackedBatch


def rows_read(batch: PackedBatch, reads: Collection[str]) -> Tensor | None:
    """The tokens `int64 (M)` of a batch in the CPU's memory that tasks read (see `Task.reads`), None where that is
    most of them. M is a steady number of rows; the last one is repeated where there are fewer.
    """
    if "all" in reads:
        return None
    wanted = [np.zeros(1, np.int64)]  # of no rows there is no matmul
    if "first" in reads:
        wanted.append(np.cumsum((0, *batch.lengths[:-1])))
    if "target" in reads and batch.target_places is not None:
        wanted.append(batch.target_places.numpy())
    rows = np.unique(np.concatenate(wanted))
    missing = rows_computed(len(rows)) - len(rows)
    if 2 * (len(rows) + missing) > len(batch.input_ids):
        return None
    return torch.from_numpy(np.concatenate([rows, np.repeat(rows[-1:], missing)]))
