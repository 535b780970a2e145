"""The vectors of a frozen encoder, computed once by the engine: what only a head is trained on."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import JobFailed
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.feature_extraction import FeatureExtraction
from xlmr_ray.tasks.task import EncoderTask
from xlmr_ray.tasks.windows import lists
from xlmr_ray.train.objectives.objective import Examples


def states_read_by(task: EncoderTask, config: XLMRobertaConfig) -> EncoderTask:
    """The task whose results are the hidden states that another one reads: of first tokens, or of all."""
    if task.reads == "first":
        return Embedding(pooling="cls", normalize=False, config=config, folder=None)
    return FeatureExtraction(config=config)


@dataclass(frozen=True, eq=False)
class FrozenVectors:
    """The vectors `(T, hidden)` of all tokens of some examples."""

    vectors: NDArray[np.float32]
    row_splits: NDArray[np.int64]

    def hidden(self, batch: PackedBatch, sequences: NDArray[np.int64], device: torch.device) -> Tensor:
        """The hidden states `(T, hidden)` of a batch of these sequences; zeros for filler."""
        found = torch.from_numpy(self.vectors[ResultRows(self.row_splits).rows(sequences)[0]])
        return F.pad(found, (0, 0, 0, len(batch.input_ids) - len(found))).to(device)


def frozen(engine: Engine, examples: Examples) -> tuple[Examples, FrozenVectors]:
    """Examples for a head, and their vectors, through an engine of one task of `states_read_by`. Where only first
    tokens are read, the sequences are cut to these. Raises JobFailed.
    """
    results = engine.run(lists(examples.row_splits, examples.input_ids))
    for code, message in results.failed.values():
        raise JobFailed(f"the encoder's vectors: {code}: {message}")
    if engine.tasks[0].unit == "sequence":
        firsts = examples.input_ids[examples.row_splits[:-1]]
        examples = replace(examples, input_ids=firsts, row_splits=np.arange(len(firsts) + 1))
    return examples, FrozenVectors(results.raw[0], examples.row_splits)


def frozen_engine(folder: Path, task: EncoderTask, *, device: str, max_tokens: int | str) -> Engine:
    """The encoder in a folder, to compute the hidden states that a task reads."""
    config = XLMRobertaConfig.from_dict(read_config(folder))
    return Engine.load(
        folder, [states_read_by(task, config)], EngineSettings(dtype="float32", device=device, max_tokens=max_tokens)
    )
