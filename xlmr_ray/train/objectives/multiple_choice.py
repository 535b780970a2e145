"""Multiple choice: the right one of a text's choices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForMultipleChoice
from xlmr_ray.tasks.multiple_choice import MultipleChoice
from xlmr_ray.tasks.windows import document_splits
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.label_names import at, finite_number
from xlmr_ray.train.objectives.objective import Examples, Objective, role_columns


@dataclass(frozen=True, eq=False)
class MultipleChoiceObjective(Objective):
    """Cross-entropy over each text's choices; the label is the index of the right one, from 0."""

    model_class = XLMRobertaForMultipleChoice

    task: MultipleChoice

    @classmethod
    def of(cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table) -> "MultipleChoiceObjective":
        return cls(MultipleChoice.bind(folder, config, job.options))

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return MultipleChoice.roles

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        encoded = self.task.prepare(role_columns(rows, MultipleChoice.roles), tokenizer)
        splits = document_splits(encoded)
        return Examples.of(encoded, splits=splits, labels=right_choices(rows, np.diff(splits).tolist()))

    def outputs(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """A logit a choice `(N)`."""
        pooled = head.get_submodule("pooler")(batch.first(hidden))
        logits: Tensor = head.get_submodule("classifier")(
            F.dropout(pooled, self.config.hidden_dropout_prob, head.training)
        )
        return logits[:, 0]

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert labels is not None
        each = torch.split(outputs.float(), list(counts))
        losses = [F.cross_entropy(own, label) for own, label in zip(each, labels, strict=True)]
        return torch.stack(losses).sum()

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        assert examples.labels is not None
        best = np.array([own.argmax() for own in outputs])
        return {"accuracy": float((best == examples.labels).mean())}


def right_choices(rows: pa.Table, counts: Sequence[int]) -> NDArray[np.int64]:
    """The index `(N)` of each row's right choice, of so many. Raises UserError."""
    found = [finite_number(value) for value in rows["label"].to_pylist()]
    for index, (value, count) in enumerate(zip(found, counts, strict=True)):
        if value is None or not value.is_integer() or not 0 <= value < count:
            raise UserError(f"{at(rows, index)}: the label is no index of one of the {count} choices, from 0")
    return np.array(found, np.int64)
