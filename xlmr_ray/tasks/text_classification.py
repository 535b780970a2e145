"""`text-classification`: labels and scores of a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.checkpoint.calibration import read_temperature, read_thresholds
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.encoded import length_limit
from xlmr_ray.tasks.long_documents import by_document, check_long, encode_documents, length_columns, length_fields
from xlmr_ray.tasks.softmax import softmax
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.text_classifier import classifier, logits_of
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "text-classification"


@dataclass(frozen=True, kw_only=True)
class TextClassification(EncoderTask):
    """Labels and their scores, of a text or a pair of texts.

    Options:
    - `top_k`: labels of a text; null gives all (default: 1).
    - `function_to_apply` to the logits: `softmax`, `sigmoid` or `none` (default: sigmoid for multi-label checkpoints
      and for one label, none for regression, else softmax).
    - `pairs`: read `text_pair`, too (default: whether the job or the call has such texts).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`, whose scores are averaged, weighted by the
      tokens that each adds. Of a pair the longer text is split, and the other one is in each window (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Output: `label` and `score`, or with another `top_k` than 1 a list `labels` of both, best first; `tokens`,
    `truncated`, and `windows` where texts are read in windows. Beside each score, where the checkpoint's calibration
    has thresholds: `above`, whether the label's score has reached its threshold, null for a label without one. It is by
    the scores that the checkpoint gives without a `function_to_apply`.
    """

    reads = "first"
    always_lists = True
    optional_roles: ClassVar[Mapping[str, str]] = {"text_pair": "pairs"}
    architectures = ("ForSequenceClassification",)
    default_order = 1

    top_k: int | None = 1
    function_to_apply: str | None = None
    pairs: bool = False
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})
    temperature: float | None = field(default=None, metadata={"option": False})
    thresholds: tuple[float | None, ...] | None = field(default=None, metadata={"option": False})

    @classmethod
    def is_default(cls, architecture: str, config: XLMRobertaConfig) -> bool:
        return architecture in cls.architectures and len(config.labels) != 1

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> TextClassification:
        known = checked_options(cls, NAME, options)
        thresholds = read_thresholds(folder, NAME, config.labels)
        return cls(**known, config=config, temperature=read_temperature(folder, NAME), thresholds=thresholds)

    def __post_init__(self) -> None:
        at_least_one(NAME, "top_k", self.top_k)
        at_least_one(NAME, "max_length", self.max_length)
        check_choice(NAME, "pairs", self.pairs, (True, False))
        check_long(NAME, self.long, self.stride)
        check_choice(NAME, "function_to_apply", self.function_to_apply, (None, "softmax", "sigmoid", "none"))

    @property
    def roles(self) -> tuple[str, ...]:
        return ("text", "text_pair") if self.pairs else ("text",)

    @property
    def output_labels(self) -> Sequence[str]:
        return self.config.labels

    @property
    def result_width(self) -> int:
        return len(self.config.labels)

    @property
    def schema(self) -> pa.Schema:
        best = [("label", pa.string()), ("score", pa.float32())]
        best += [] if self.thresholds is None else [("above", pa.bool_())]
        ranked = best if self.top_k == 1 else [("labels", pa.list_(pa.struct(best)))]
        return pa.schema([*ranked, *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        pairs = columns["text_pair"] if self.pairs else None
        return encode_documents(
            NAME, columns["text"], pairs, tokenizer, max_length=limit, long=self.long, stride=self.stride
        )

    def head(self) -> nn.Module:
        return classifier(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits `(N, labels)`."""
        return logits_of(head, hidden, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        logits = raw.astype(np.float64)
        scores = by_document(self.scores(logits), self.long, encoded).astype(np.float32)
        count = scores.shape[1] if self.top_k is None else min(self.top_k, scores.shape[1])
        # Stable, so that equal scores keep the order of the labels.
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        names = pa.array(self.config.labels, pa.string()).take(pa.array(order.ravel()))
        ranked: list[pa.Array] = [names, pa.array(np.take_along_axis(scores, order, axis=1).ravel())]
        if self.thresholds is not None:
            own = scores
            if self.function_to_apply is not None:
                usual = replace(self, function_to_apply=None)
                own = by_document(usual.scores(logits), self.long, encoded).astype(np.float32)
            known = np.array([one is not None for one in self.thresholds])
            least = np.array([one or 0.0 for one in self.thresholds])
            above = np.take_along_axis(own >= least, order, axis=1).ravel()
            ranked.append(pa.array(above, mask=~known[order].ravel()))
        if self.top_k != 1:
            splits = pa.array(np.arange(len(scores) + 1, dtype=np.int32) * count)
            fields = list(self.schema.field("labels").type.value_type)
            ranked = [pa.ListArray.from_arrays(splits, pa.StructArray.from_arrays(ranked, fields=fields))]
        columns = [*ranked, *length_columns(self.long, encoded)]
        return pa.table(columns, schema=self.schema)

    def scores(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of logits, both `(N, labels)`; the checkpoint's temperature counts where a function is applied."""
        apply = self.function_to_apply
        if apply is None and self.config.problem_type == "regression":
            apply = "none"
        if apply == "none":
            return logits
        if self.temperature is not None:
            logits = logits / self.temperature
        if apply == "sigmoid" or (
            apply is None and (self.config.problem_type == "multi_label_classification" or logits.shape[1] == 1)
        ):
            return 1 / (1 + np.exp(-logits))
        return softmax(logits)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        if self.top_k == 1:
            return list(table.select(["label", "score", *(["above"] if self.thresholds else [])]).to_pylist())
        return list(table["labels"].to_pylist())
