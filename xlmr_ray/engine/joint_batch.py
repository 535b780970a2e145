"""One batch of several callers' sequences, each caller with a task object: one pass of the encoder for all of them, and
one of the head for callers that have the same task object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.parts import BatchPart
from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.model.packed_batch import pack
from xlmr_ray.tasks.task import EncoderTask


@dataclass(frozen=True)
class CallerSequences:
    """Sequences for one task object: flat `ids (T)` of N sequences of `lengths (N)`, with their `targets (T)`, -100
    where a token has none, or None where the task reads none. `head` is the index of the task's head in the engine.
    """

    task: EncoderTask
    head: int
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None

    @property
    def result_rows(self) -> int:
        """How many results they have."""
        splits = np.concatenate([[0], np.cumsum(self.lengths)])
        return ResultRows.of(self.task.unit, splits, self.targets).total


def compute_together(engine: Engine, callers: Sequence[CallerSequences]) -> list[NDArray[np.float32]]:
    """The results `(R, ...)` of each caller, a row a unit of its task. All sequences are one batch.

    Equal to the last bit to what each caller's sequences give without the others, on a CPU. Raises torch's error where
    memory runs out.
    """
    of_task: dict[int, list[int]] = {}
    for index, one in enumerate(callers):
        of_task.setdefault(id(one.task), []).append(index)
    # Those of an adapter beside each other.
    groups = sorted(of_task.values(), key=lambda group: engine.adapter(callers[group[0]].head) or 0)
    order = [index for group in groups for index in group]
    ordered = [callers[index] for index in order]
    targets = None
    if any(one.targets is not None for one in ordered):
        targets = np.concatenate(
            [np.full(len(one.ids), IGNORED, np.int32) if one.targets is None else one.targets for one in ordered]
        )
    parts, first = [], 0
    for group in groups:
        count = sum(len(callers[index].lengths) for index in group)
        parts.append(BatchPart(callers[group[0]].task, callers[group[0]].head, first, count))
        first += count
    lengths = np.concatenate([one.lengths for one in ordered])
    ids, splits = np.concatenate([one.ids for one in ordered]), np.concatenate([[0], np.cumsum(lengths)])
    batch = pack(ids, splits, np.arange(first), engine.model.config, targets=targets)
    outputs = engine.compute(batch, parts)
    engine.synchronize()
    results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(callers)
    for group, output in zip(groups, outputs, strict=True):
        ends = np.cumsum([callers[index].result_rows for index in group])
        for index, values in zip(group, np.split(output.numpy(), ends[:-1]), strict=True):
            results[index] = values
    return results
