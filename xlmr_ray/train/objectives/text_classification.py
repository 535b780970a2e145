"""Text classification: one label, several, or a number."""

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
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForSequenceClassification
from xlmr_ray.tasks.task import checked_options
from xlmr_ray.tasks.text_classification import NAME, TextClassification
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.label_names import (
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    hot_of,
    indices,
    label_numbers,
    labels_in_order,
    problem_of,
    quoted_label,
    several_names,
    single_names,
)
from xlmr_ray.train.objectives.objective import (
    Examples,
    Objective,
    classified,
    role_columns,
    weights_of,
    with_labels,
)


@dataclass(frozen=True, eq=False)
class TextClassificationObjective(Objective):
    """Cross-entropy of one label, binary cross-entropy of several, squared error of a number: transformers' losses.

    `weights` are the labels'; of several labels a row, they are those of the rows that have it.
    """

    class_weights = True
    model_class = XLMRobertaForSequenceClassification

    task: TextClassification
    problem: str
    weights: tuple[float, ...] | None

    @classmethod
    def of(
        cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table
    ) -> "TextClassificationObjective":
        problem = problem_of(rows, job.problem)
        before = config.labels if config.problem_type in (None, PROBLEM_TYPES[problem]) else ()
        weights = None
        if problem == REGRESSION:
            if job.class_weights is not None:
                raise UserError("class_weights: a number has no classes (problem: regression)")
            names = config.labels if len(config.labels) == 1 else ["score"]
            values = label_numbers(rows)
            if (values == values[0]).all():
                raise UserError(f"train.label: all {len(rows)} rows have the same number: there is nothing to learn")
        elif problem == MULTI:
            several = several_names(rows)
            found = sorted({name for own in several for name in own})
            if not found:
                raise UserError("train.label: no row has a label")
            names = labels_in_order(found, before)
            counts = np.array([sum(name in own for own in several) for name in names])
            weights = weights_of(job, names, counts, len(several) - counts)
        else:
            each = single_names(rows)
            if len(set(each)) < 2:
                raise UserError(
                    f"train.label: all {len(rows)} rows have the label {quoted_label(each[0])}: expected at least two"
                )
            names = labels_in_order(each, before)
            weights = weights_of(job, names, np.array([each.count(name) for name in names]))
        made = with_labels(config, names, PROBLEM_TYPES[problem])
        options = {"pairs": True, **job.options} if job.train.column("text_pair") is not None else job.options
        # Not bound to the folder, whose calibration is of the weights and labels as they were.
        return cls(
            TextClassification(**checked_options(TextClassification, NAME, options), config=made), problem, weights
        )

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return ("text",) if job.train.column("text_pair") is None else ("text", "text_pair")

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        encoded = self.task.prepare(role_columns(rows, self.task.roles), tokenizer)
        if self.problem == REGRESSION:
            return Examples.of(encoded, labels=label_numbers(rows))
        if self.problem == SINGLE:
            labels = indices(rows, single_names(rows), self.config.labels)
            weights = None if self.weights is None else np.array(self.weights)[labels]
            return Examples.of(encoded, labels=labels, weights=weights)
        return Examples.of(encoded, labels=hot_of(rows, self.config.labels))

    def outputs(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        return classified(head, hidden, batch, self.config)

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert labels is not None
        logits = outputs.float()
        weights = None if self.weights is None else torch.tensor(self.weights, device=logits.device)
        if self.problem == SINGLE:
            return F.cross_entropy(logits, labels, weight=weights, reduction="sum")
        if self.problem == REGRESSION:
            return F.mse_loss(logits[:, 0], labels, reduction="sum")
        each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="none")
        return each.mean(1).sum()

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        logits, labels = np.concatenate(outputs), examples.labels
        assert labels is not None
        if self.problem == SINGLE:
            return {"accuracy": float((logits.argmax(1) == labels).mean())}
        if self.problem == MULTI:
            found, wanted = logits > 0, labels > 0
            return {"micro_f1": float(2 * (found & wanted).sum() / max(1, found.sum() + wanted.sum()))}
        spread = float(((labels - labels.mean()) ** 2).mean())
        return {"r2": 1 - float(((logits[:, 0] - labels) ** 2).mean()) / spread if spread else 0.0}
