"""What a task needs for training beside what it has for inference: labels, a loss, and how good it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.errors import UserError
from xlmr_ray.model.heads import classifier_dropout
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.tasks.encoded import ragged
from xlmr_ray.tasks.task import EncoderTask
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob


@dataclass(frozen=True, eq=False)
class Examples:
    """E examples of S sequences of T tokens. Sequence s is `input_ids[row_splits[s]:row_splits[s + 1]]`, example e has
    the sequences `splits[e]` to `splits[e + 1]`.

    `weights (E)` are the examples' parts in a mean; `targets (T)` the tokens' labels, -100 where a token has none;
    `labels (E, ...)` the examples'.
    """

    input_ids: NDArray[np.int32]
    row_splits: NDArray[np.int64]
    splits: NDArray[np.int64]
    weights: NDArray[np.float64]
    targets: NDArray[np.int32] | None = None
    labels: NDArray[Any] | None = None

    @classmethod
    def of(
        cls,
        encoded: pa.Table,
        *,
        weights: NDArray[np.float64] | None = None,
        targets: NDArray[np.int32] | None = None,
        labels: NDArray[Any] | None = None,
        splits: NDArray[np.int64] | None = None,
    ) -> "Examples":
        """Of an encoded table: a sequence each, or those at `splits`; weights of 1 where none are given."""
        ids, row_splits = ragged(encoded["input_ids"])
        each = np.arange(len(row_splits)) if splits is None else splits
        return cls(ids, row_splits, each, np.ones(len(each) - 1) if weights is None else weights, targets, labels)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens `(E)` of each example."""
        counts: NDArray[np.int64] = np.diff(self.row_splits[self.splits])
        return counts

    def sequences(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequences of the chosen examples, in their order."""
        return np.concatenate([np.arange(self.splits[e], self.splits[e + 1]) for e in chosen])

    def take(self, chosen: NDArray[np.int64]) -> "Examples":
        """The chosen examples, in their order."""
        sequences = self.sequences(chosen)
        tokens, _ = ResultRows(self.row_splits).rows(sequences)
        return Examples(
            self.input_ids[tokens],
            np.append(0, np.cumsum(np.diff(self.row_splits)[sequences])),
            np.append(0, np.cumsum(np.diff(self.splits)[chosen])),
            self.weights[chosen],
            None if self.targets is None else self.targets[tokens],
            None if self.labels is None else self.labels[chosen],
        )


class Objective(ABC):
    """A task with its labels: a frozen dataclass. `together`: whether the examples of a step see each other, and so are
    computed at once. `class_weights` says whether the job's have a meaning here. `frozen`: whether `method: head` has.
    `any_token`: whether an epoch's examples may have tokens that the training's have not.
    """

    together: ClassVar[bool] = False
    class_weights: ClassVar[bool] = False
    frozen: ClassVar[bool] = True
    labelled: ClassVar[bool] = True
    any_token: ClassVar[bool] = False
    model_class: ClassVar[type[Pretrained]]

    task: EncoderTask

    @classmethod
    @abstractmethod
    def of(cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table) -> "Objective":
        """For the training rows of a job, on a checkpoint. Raises UserError for labels that cannot be learnt."""

    @classmethod
    @abstractmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        """The text columns that are read."""

    @property
    @abstractmethod
    def config(self) -> XLMRobertaConfig:
        """The checkpoint's configuration with the labels in it."""

    @abstractmethod
    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        """Labelled rows to examples. Raises UserError for a label that is none of the training's."""

    def epoch(self, examples: Examples, seed: Sequence[int]) -> Examples:
        """The examples as one epoch sees them."""
        return examples

    @property
    def unit(self) -> str:
        """What `outputs` has a row for: see `EncoderTask.unit`."""
        return self.task.unit

    def dropout(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Hidden states on the way to the head while it is trained: as in transformers, which has a dropout there in
        some classes.
        """
        return hidden

    def outputs(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """What the loss is made of, a row a unit: the task's own results."""
        return self.task.forward(head, hidden, batch)

    @abstractmethod
    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        """The sum over a batch's examples, each by its weight, in fp32. `labels (E, ...)` are those of its examples,
        `counts (E)` how many sequences they have.
        """

    @abstractmethod
    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        """How good the `outputs (R, ...)` of each example are, the most telling first; more is better."""


def classified(head: nn.Module, hidden: Tensor, batch: PackedBatch, config: XLMRobertaConfig) -> Tensor:
    """Logits `(N, labels)` as transformers trains them: in BERT's layout there is a dropout behind the pooler."""
    first = batch.first(hidden)
    if config.bert_layout:
        first = F.dropout(head.get_submodule("pooler")(first), classifier_dropout(config).p, head.training)
    logits: Tensor = head.get_submodule("classifier")(first)
    return logits


def role_columns(rows: pa.Table, roles: Sequence[str]) -> pa.Table:
    """The columns that a task's `prepare` reads."""
    return rows.select(list(roles))


def with_labels(config: XLMRobertaConfig, names: Sequence[str], problem: str | None) -> XLMRobertaConfig:
    """A configuration with these labels in this order."""
    values = config.to_dict()
    for key in ("id2label", "label2id", "num_labels", "problem_type"):
        values.pop(key, None)
    return XLMRobertaConfig(**values, id2label=dict(enumerate(names)), problem_type=problem)


def weights_of(
    job: FinetuneJob, names: Sequence[str], counts: NDArray[np.integer], others: NDArray[np.integer] | None = None
) -> tuple[float, ...] | None:
    """The weight of each label, None where all are 1: as the job says, or `balanced`, which is rows / (labels x rows
    of the label); of independent labels (with `others`, the rows without each) rows without / rows with.

    Raises UserError for a weight of no label.
    """
    asked = job.class_weights
    if asked is None:
        return None
    if isinstance(asked, Mapping):
        for name in asked:
            if name not in names:
                raise UserError(f"class_weights: {name!r} is none of the labels: {', '.join(names)}")
        return tuple(float(asked.get(name, 1.0)) for name in names)
    seen = np.maximum(counts, 1)
    return tuple((counts.sum() / (len(names) * seen) if others is None else others / seen).tolist())
