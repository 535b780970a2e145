"""`multiple-choice`: which of several continuations or answers fits a text best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.encoded import documents, length_limit, lengths, whole_documents
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked_options
from xlmr_ray.tasks.unfit import WRONG_CHOICES, UnfitRows
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "multiple-choice"


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(EncoderTask):
    """Which of a text's choices fits it best. `choices` are a list of strings, at least one, or its JSON.

    Options:
    - `max_length`: tokens of a text and a choice together; of longer pairs the longer one is cut, and flagged (default:
      what the checkpoint allows).

    Output: `choice`, the best one's index from 0; `score`, its probability; `scores`, those of all in their order;
    `tokens` of all pairs of the document, `truncated`.
    """

    roles = ("text", "choices")
    reads = "first"
    list_roles = ("choices",)
    architectures = ("ForMultipleChoice",)

    max_length: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> MultipleChoice:
        return cls(**checked_options(cls, NAME, options), config=config)

    def __post_init__(self) -> None:
        at_least_one(NAME, "max_length", self.max_length)

    @property
    def schema(self) -> pa.Schema:
        """`choice` is the best one's index, from 0, `score` its probability, `scores` those of all in their order;
        `tokens` are those of all the document's pairs.
        """
        return pa.schema(
            [
                ("choice", pa.int32()),
                ("score", pa.float32()),
                ("scores", pa.list_(pa.float32())),
                ("tokens", pa.int32()),
                ("truncated", pa.bool_()),
            ]
        )

    def example(self, mask_token: str) -> dict[str, Any]:
        return {"text": "a", "choices": ["a", "b"]}

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> int:
        return sum(map(len, columns["choices"]))

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        choices = choices_of(columns["choices"])
        of_document = np.repeat(np.arange(len(choices)), [len(own) for own in choices])
        texts = columns["text"].take(pa.array(of_document))
        flat = pa.chunked_array([pa.array([choice for own in choices for choice in own], pa.string())])
        try:
            encoded = whole_documents(texts, flat, tokenizer, limit)
        except TokenizerError as error:
            raise TokenizerError(int(of_document[error.index]), error.reason) from None
        return encoded.append_column("document", pa.array(of_document, pa.int32()))

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.model.heads import Pooler
        from xlmr_ray.model.meta_device import shapes_only

        with shapes_only():
            return nn.ModuleDict({"pooler": Pooler(self.config), "classifier": nn.Linear(self.config.hidden_size, 1)})

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """A logit a pair `(N)`."""
        from xlmr_ray.model.batch_invariance import pad_rows

        pooled = head.get_submodule("pooler")(pad_rows(batch.first(hidden)))
        logits: Tensor = head.get_submodule("classifier")(pooled)
        return logits[: batch.sequences, 0]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        _, first, counts = np.unique(documents(encoded), return_index=True, return_counts=True)
        if not len(first):
            return self.schema.empty_table()
        logits = raw.astype(np.float64)
        exponents = np.exp(logits - np.repeat(np.maximum.reduceat(logits, first), counts))
        scores = exponents / np.repeat(np.add.reduceat(exponents, first), counts)
        splits = np.concatenate([[0], np.cumsum(counts)])
        best = np.array([logits[start:end].argmax() for start, end in pairwise(splits.tolist())])
        columns = [
            pa.array(best, pa.int32()),
            pa.array(scores[first + best].astype(np.float32)),
            pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pa.array(scores.astype(np.float32))),
            pa.array(np.add.reduceat(lengths(encoded), first), pa.int32()),
            pa.array(np.logical_or.reduceat(encoded["truncated"].to_numpy(), first)),
        ]
        return pa.table(columns, schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`choice`, `score` and `scores`; transformers has no pipeline of this name."""
        return list(table.select(["choice", "score", "scores"]).to_pylist())


def choices_of(column: pa.ChunkedArray) -> list[list[str]]:
    """The choices of each text, from lists or from their JSON. Raises UnfitRows."""
    values: list[Any] = column.to_pylist()
    failures = {}
    for index, value in enumerate(values):
        if isinstance(value, str):
            try:
                values[index] = value = json.loads(value)
            except (ValueError, RecursionError):
                failures[index] = (WRONG_CHOICES, "the choices are no JSON array of strings")
                continue
        if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
            failures[index] = (WRONG_CHOICES, "the choices are no list of strings")
        elif not value:
            failures[index] = (WRONG_CHOICES, "the list of choices is empty")
    if failures:
        raise UnfitRows(failures)
    return values
