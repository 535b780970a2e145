"""Reranking: whether, or how well, a document answers a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForSequenceClassification
from xlmr_ray.tasks.rerank import Rerank
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.label_names import at, finite_number
from xlmr_ray.train.objectives.objective import Examples, Objective, classified, role_columns, with_labels

BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, eq=False)
class RerankObjective(Objective):
    """Binary cross-entropy of a pair's label, from 0 (does not answer) to 1, as sentence-transformers' CrossEncoder."""

    model_class = XLMRobertaForSequenceClassification

    task: Rerank

    @classmethod
    def of(cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table) -> "RerankObjective":
        labels = relevance(rows)
        if (labels == labels[0]).all():
            raise UserError(
                f"train.label: all {len(rows)} pairs have the label {labels[0]:g}: expected pairs that answer and "
                "pairs that do not"
            )
        names = config.labels if len(config.labels) == 1 else ["LABEL_0"]
        return cls(Rerank.bind(folder, with_labels(config, names, None), job.options))

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return Rerank.roles

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        return Examples.of(self.task.prepare(role_columns(rows, Rerank.roles), tokenizer), labels=relevance(rows))

    def outputs(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        return classified(head, hidden, batch, self.config)[:, 0]

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert labels is not None
        return F.binary_cross_entropy_with_logits(outputs.float(), labels, reduction="sum")

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        assert examples.labels is not None
        return {"accuracy": float(((np.concatenate(outputs) > 0) == (examples.labels > 0.5)).mean())}


def relevance(rows: pa.Table) -> NDArray[np.float32]:
    """The label `(N)` of each pair, from 0 to 1. Raises UserError."""
    found = []
    for index, value in enumerate(rows["label"].to_pylist()):
        one = BOOLEANS.get(value) if isinstance(value, str) else None
        one = finite_number(value) if one is None else one
        if one is None or not 0 <= one <= 1:
            raise UserError(f"{at(rows, index)}: the label is no number from 0 (does not answer) to 1")
        found.append(one)
    return np.array(found, np.float32)
