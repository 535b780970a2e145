"""Question answering: where in a context the answer starts and ends."""

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
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForQuestionAnswering
from xlmr_ray.tasks.question_answering import QuestionAnswering
from xlmr_ray.tasks.windows import flat
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.label_names import at
from xlmr_ray.train.objectives.objective import Examples, Objective, role_columns, with_labels


@dataclass(frozen=True, eq=False)
class QuestionAnsweringObjective(Objective):
    """The mean of two cross-entropies over a window's tokens: that the answer starts here, and that it ends here. In a
    window without the whole answer both are the first token. Every window is an example.
    """

    model_class = XLMRobertaForQuestionAnswering

    task: QuestionAnswering

    @classmethod
    def of(
        cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table
    ) -> "QuestionAnsweringObjective":
        if all(span is None for span in first_answers(rows)):
            raise UserError("train.label: no row has an answer")
        names = config.labels if len(config.labels) == 2 else ["LABEL_0", "LABEL_1"]
        options = {"align_to_words": False, **job.options}
        return cls(QuestionAnswering.bind(folder, with_labels(config, names, None), options))

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return QuestionAnswering.roles

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        encoded = self.task.prepare(role_columns(rows, QuestionAnswering.roles), tokenizer)
        start, end = (flat(encoded[name]).to_numpy() for name in ("start", "end"))
        splits = encoded["input_ids"].combine_chunks().offsets.to_numpy()
        spans = first_answers(rows)
        labels = np.zeros((len(encoded), 2), np.int64)
        for window, document in enumerate(encoded["document"].to_pylist()):
            own = slice(splits[window], splits[window + 1])
            span = spans[document]
            if span is None:
                continue
            first, last = span
            covered = np.flatnonzero((start[own] >= 0) & (end[own] > first) & (start[own] < last))
            whole = len(covered) and start[own][covered[0]] <= first and end[own][covered[-1]] >= last
            if whole:
                labels[window] = covered[0], covered[-1]
        return Examples.of(encoded, labels=labels)

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert labels is not None
        # `(S, 2)` of each sequence to two rows of logits over its S tokens.
        each = zip(torch.split(outputs.float(), list(batch.lengths)), labels, strict=True)
        return torch.stack([F.cross_entropy(own.t(), places) for own, places in each]).sum()

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        assert examples.labels is not None
        found = np.array([own.argmax(0) for own in outputs])
        return {"exact": float((found == examples.labels).all(1).mean())}


def first_answers(rows: pa.Table) -> list[tuple[int, int] | None]:
    """First character and last one + 1 of each row's answer, the first of several, None where there is none. Raises
    UserError for another form than SQuAD's, and where the text does not stand there.
    """
    contexts = rows["context"].to_pylist()
    found: list[tuple[int, int] | None] = []
    for index, (texts, starts) in enumerate(squad_answers(rows)):
        span = (starts[0], starts[0] + len(texts[0])) if texts and starts else None
        if span is not None and contexts[index][slice(*span)] != texts[0]:
            raise UserError(f"{at(rows, index)}: the answer does not stand at character {span[0]} of the context")
        found.append(span)
    return found


def squad_answers(rows: pa.Table) -> list[tuple[list[str], list[int]]]:
    """The texts of each row's answers, and at which characters they start: from SQuAD's `answers` (`text` and
    `answer_start`, lists, or one of each), or their JSON. Raises UserError for another form.
    """
    found = []
    for index, value in enumerate(rows["label"].to_pylist()):
        try:
            given = json.loads(value) if isinstance(value, str) else value
            texts, starts = in_a_list(given["text"]), in_a_list(given["answer_start"])
            found.append(([str(text) for text in texts], [int(start) for start in starts]))
        except (TypeError, ValueError, KeyError):
            raise UserError(
                f"{at(rows, index)}: the label has no text and answer_start, as SQuAD's answers have, nor is their JSON"
            ) from None
    return found


def in_a_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
