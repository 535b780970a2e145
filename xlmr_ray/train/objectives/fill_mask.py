"""Masked language modelling: the hidden tokens of plain texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.heads import LMHead
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.model.losses import lm_loss
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForMaskedLM
from xlmr_ray.tasks.encoded import length_limit
from xlmr_ray.tasks.fill_mask import FillMask
from xlmr_ray.tasks.windows import windows
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.objective import Examples, Objective

SHARE = 0.15  # of a text's tokens that are foretold; of these
MASKED, RANDOM = 0.8, 0.1  # are the mask, and another token


@dataclass(frozen=True, eq=False)
class FillMaskObjective(Objective):
    """Cross-entropy of hidden tokens, drawn anew each epoch as BERT does: 15 % of a text's tokens, of which 80 % are
    the mask, 10 % another token, and 10 % stay. Long texts go by windows that share nothing.
    """

    frozen = False
    labelled = False
    any_token = True
    model_class = XLMRobertaForMaskedLM

    task: FillMask
    mask: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table) -> "FillMaskObjective":
        task = FillMask.bind(folder, config, job.options)
        mask = task.tokenizer.mask_token_id
        if mask is None:
            raise UserError(f"task fill-mask: the tokenizer of {folder} has no mask token")
        return cls(task, int(mask), tuple(map(int, task.tokenizer.all_special_ids)))

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return FillMask.roles

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    @property
    def unit(self) -> str:
        return "target"

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        limit = length_limit("fill-mask", self.task.max_length, self.config.max_length, tokenizer)
        return Examples.of(windows(rows["text"], tokenizer, max_length=limit, stride=0))

    def epoch(self, examples: Examples, seed: Sequence[int]) -> Examples:
        random = np.random.default_rng([*seed, 3])
        ids = examples.input_ids.copy()
        hidden = (random.random(len(ids)) < SHARE) & ~np.isin(ids, self.special)
        targets = np.where(hidden, ids, IGNORED).astype(np.int32)
        fate = random.random(len(ids))
        others = random.integers(0, self.config.vocab_size, len(ids), dtype=np.int32)
        ids[hidden & (fate < MASKED)] = self.mask
        swapped = hidden & (fate >= MASKED) & (fate < MASKED + RANDOM)
        ids[swapped] = others[swapped]
        weights = np.add.reduceat(hidden.astype(np.float64), examples.row_splits[:-1])
        return replace(examples, input_ids=ids, targets=targets, weights=weights)

    def outputs(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The hidden states `(M, hidden)` of the tokens to be foretold: their logits are made in the loss."""
        return batch.at_targets(hidden)

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert batch.targets is not None
        model = head.get_submodule("lm_head")
        assert isinstance(model, LMHead)
        if not len(outputs):
            return outputs.sum()
        return lm_loss(outputs, batch.at_targets(batch.targets), model) * len(outputs)

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        return {}
