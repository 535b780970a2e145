"""Token classification: the spans of a text that are entities."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.heads import classifier_dropout
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForTokenClassification
from xlmr_ray.tasks.encoded import lengths
from xlmr_ray.tasks.token_classification import TokenClassification
from xlmr_ray.tasks.windows import flat
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.label_names import at
from xlmr_ray.train.objectives.objective import Examples, Objective, role_columns, weights_of, with_labels

Span = tuple[int, int, str]  # first character, last character + 1, kind


@dataclass(frozen=True, eq=False)
class TokenClassificationObjective(Objective):
    """Cross-entropy of every token's label, `B-` and `I-` with the kind of its entity, or `O`; every window of a long
    text is an example. `weights` are the labels'.
    """

    class_weights = True
    model_class = XLMRobertaForTokenClassification

    task: TokenClassification
    weights: tuple[float, ...] | None

    @classmethod
    def of(
        cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table
    ) -> "TokenClassificationObjective":
        found = sorted({kind for spans in entities(rows) for _, _, kind in spans})
        if not found:
            raise UserError("train.label: no row has an entity")
        names = ["O", *(f"{mark}-{kind}" for kind in found for mark in ("B", "I"))]
        if set(names) <= set(config.labels):
            names = config.labels
        if job.class_weights == "balanced":
            raise UserError("class_weights: balanced is of rows with one label each; give each label its weight")
        weights = weights_of(job, names, np.zeros(len(names), np.int64))
        bound = TokenClassification.bind(folder, with_labels(config, names, None), job.options)
        return cls(bound, weights)

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return TokenClassification.roles

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        encoded = self.task.prepare(role_columns(rows, TokenClassification.roles), tokenizer)
        index_of = {name: index for index, name in enumerate(self.config.labels)}
        start, end = (flat(encoded[name]).to_numpy() for name in ("start", "end"))
        ends = np.concatenate([[0], np.cumsum(lengths(encoded))])
        targets = np.where(start < 0, IGNORED, index_of["O"]).astype(np.int32)
        all_spans = entities(rows)
        for window, document in enumerate(encoded["document"].to_pylist()):
            own = slice(ends[window], ends[window + 1])
            for first, last, kind in all_spans[document]:
                if f"B-{kind}" not in index_of:
                    raise UserError(
                        f"{at(rows, document)}: entities of kind {kind!r} are not among those that are trained"
                    )
                inside = np.flatnonzero((end[own] > first) & (start[own] < last) & (start[own] >= 0)) + ends[window]
                targets[inside] = index_of[f"I-{kind}"]
                # In a window that begins within an entity, no token begins it.
                if len(inside) and end[inside[0]] > first >= start[inside[0]]:
                    targets[inside[0]] = index_of[f"B-{kind}"]
        weights = np.ones(len(index_of)) if self.weights is None else np.array(self.weights)
        each = np.where(targets == IGNORED, 0.0, weights[np.maximum(targets, 0)])
        return Examples.of(encoded, targets=targets, weights=np.add.reduceat(each, ends[:-1]))

    def dropout(self, hidden: Tensor, head: nn.Module) -> Tensor:
        return F.dropout(hidden, classifier_dropout(self.config).p, head.training)

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert batch.targets is not None
        weights = None if self.weights is None else torch.tensor(self.weights, device=outputs.device)
        wanted = batch.targets[: batch.tokens]
        return F.cross_entropy(outputs.float(), wanted, weight=weights, ignore_index=IGNORED, reduction="sum")

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        assert examples.targets is not None
        found, wanted = np.concatenate(outputs).argmax(1), examples.targets
        entity = (wanted != IGNORED) & (wanted != self.config.labels.index("O"))
        named = (wanted != IGNORED) & (found != self.config.labels.index("O"))
        right = int((entity & (found == wanted)).sum())
        return {
            "token_f1": 2 * right / max(1, int(entity.sum() + named.sum())),
            "accuracy": float((found == wanted)[wanted != IGNORED].mean()),
        }


def entities(rows: pa.Table) -> list[list[Span]]:
    """The spans of each row `(N)`, ascending: from lists of `start`, `end` (characters) and `label`, as the task's own
    output has them, or their JSON. Raises UserError for others, and where two of them overlap.
    """
    texts = rows["text"].to_pylist()
    found = []
    for index, value in enumerate(rows["label"].to_pylist()):
        try:
            spans = sorted(map(labelled_span, json.loads(value) if isinstance(value, str) else value))
        except (TypeError, ValueError, KeyError):
            raise UserError(
                f"{at(rows, index)}: the entities are no list of start, end (characters) and label, nor the JSON of one"
            ) from None
        before = 0
        for first, last, _ in spans:
            if not before <= first < last <= len(texts[index]):
                raise UserError(
                    f"{at(rows, index)}: an entity from character {first} to {last} is empty, overlaps another, or "
                    f"leaves the text of {len(texts[index])} characters"
                )
            before = last
        found.append(spans)
    return found


def labelled_span(value: Any) -> Span:
    return int(value["start"]), int(value["end"]), str(value["label"])
