"""One pass of the encoder over the sequences of several callers, each with a task object of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.engine.engine import Engine
from xlmr_ray.model.batch_invariance import steady_rows
from xlmr_ray.model.layout import Packed
from xlmr_ray.model.packed_batch import IGNORED, PackedBatch, pack
from xlmr_ray.tasks.task import Task


@dataclass(frozen=True)
class Part:
    """Sequences for one task object: flat `ids (T)` of N sequences of `lengths (N)`, with their `targets (T)`, -100
    where a token has none, or None where the task reads none. `place` is that of the engine's head for it.
    """

    task: Task
    place: int
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int32] | None = None


@torch.inference_mode()
def run_mixed(engine: Engine, parts: Sequence[Part]) -> list[NDArray[np.float32]]:
    """The results `(R, ...)` of each part, a row a unit of its task. All sequences are one batch.

    Equal to the last bit to what each part gives alone, on a CPU. Raises torch's own error where memory runs out.
    """
    ids = np.concatenate([part.ids for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    splits = np.concatenate([[0], np.cumsum(lengths)])
    targets = None
    if any(part.targets is not None for part in parts):
        nothing = [np.full(len(part.ids), IGNORED, np.int32) for part in parts]
        targets = np.concatenate(
            [none if part.targets is None else part.targets for none, part in zip(nothing, parts, strict=True)]
        )
    batch = pack(ids, splits, np.arange(len(lengths)), engine.model.config, targets=targets)
    on_gpu = engine.device.type == "cuda"
    there = batch.pin_memory().to(engine.device) if on_gpu else batch
    last, trace = engine.encode(batch, there, [part.task for part in parts])
    outputs = []
    begin = sequence = 0
    for part in parts:
        hidden = last
        if part.task.layers and trace.hidden_states is not None:
            hidden = torch.stack([trace.hidden_states[layer] for layer in part.task.layers])
        own = there
        if len(parts) > 1:
            own = slice_of(batch, begin, sequence, len(part.lengths))
            hidden = resized(hidden.narrow(-2, begin, len(part.ids)), sum(own.layout.lengths))
            own = own.pin_memory().to(engine.device) if on_gpu else own
        outputs.append(part.task.forward(engine.heads[part.place], hidden, own).float().to("cpu", non_blocking=True))
        begin, sequence = begin + len(part.ids), sequence + len(part.lengths)
    if on_gpu:
        torch.cuda.synchronize(engine.device)
    engine.stats.batches += 1
    engine.stats.sequences += batch.sequences
    engine.stats.tokens += batch.tokens
    engine.stats.padded += len(batch.input_ids) - batch.tokens
    return [output.numpy() for output in outputs]


def slice_of(batch: PackedBatch, begin: int, sequence: int, count: int) -> PackedBatch:
    """The `count` sequences from number `sequence` and token `begin` on as a batch of their own, for a head: ids and
    positions, which the encoder alone reads, are without filler.
    """
    window = slice(begin, begin + sum(batch.layout.lengths[sequence : sequence + count]))
    lengths, total = batch.layout.lengths[sequence : sequence + count], window.stop - begin
    filler = steady_rows(total) - total
    targets = target_places = None
    if batch.targets is not None:
        targets = F.pad(batch.targets[window], (0, filler), value=IGNORED)
        target_places = torch.from_numpy(np.flatnonzero(targets.numpy() != IGNORED))
    layout = Packed.of([*lengths, *([filler] if filler else [])], causal=batch.layout.causal)
    ids, positions = batch.input_ids[window], batch.position_ids[window]
    return PackedBatch(ids, positions, layout, count, targets, target_places)


def resized(hidden: Tensor, rows: int) -> Tensor:
    """`hidden (…, T, hidden)` with zeros appended, up to so many rows."""
    return F.pad(hidden, (0, 0, 0, rows - hidden.shape[-2]))
