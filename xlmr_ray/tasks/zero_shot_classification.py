"""`zero-shot-classification`: labels named by the caller, scored by a head for natural language inference."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import length_limit, lengths
from xlmr_ray.tasks.long_documents import check_long, length_fields
from xlmr_ray.tasks.softmax import softmax
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.text_classifier import classifier, logits_of
from xlmr_ray.tasks.windows import (
    averaged,
    check_stride,
    default_stride,
    document_splits,
    joined_parts,
    lists,
    own_tokens,
    summed,
    window_spans,
)
from xlmr_ray.tokenizer.ragged import Template, Truncation
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

log = logging.getLogger(__name__)

NAME = "zero-shot-classification"
WHOLE: Truncation = "do_not_truncate"
LABEL = pa.struct([("label", pa.string()), ("score", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class ZeroShotClassification(EncoderTask):
    """Labels named by the caller, each scored as a hypothesis about the text.

    Options:
    - `candidate_labels`: a list, or a string with commas (no default).
    - `hypothesis_template`: a text whose `{}` takes a label (default: `This example is {}.`).
    - `multi_label`: each label by itself, else the scores of all labels add up to 1 (default: false).
    - `max_length`: tokens of text and hypothesis together (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`, whose scores are averaged, weighted by the
      tokens that each adds; a hypothesis is always whole (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Output: `labels`, all of them with their scores, best first; `tokens` of all pairs of the document, `truncated`, and
    `windows` where texts are read in windows.
    """

    roles = ("text",)
    reads = "first"
    request_bounds: ClassVar[Mapping[str, int | str]] = {"candidate_labels": "sequences"}
    example_options: ClassVar[Mapping[str, Any]] = {"candidate_labels": ["a", "b"]}
    positional_option = "candidate_labels"
    architectures = ("ForSequenceClassification",)

    candidate_labels: str | Sequence[str] = ()
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def is_default(cls, architecture: str, config: XLMRobertaConfig) -> bool:
        entails = any(label.lower().startswith("entail") for label in config.labels)
        return architecture in cls.architectures and len(config.labels) != 1 and entails

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> ZeroShotClassification:
        task = cls(**checked_options(cls, NAME, options), config=config)
        if entailment(config) == -1:
            log.warning(
                "%s: no label of %s begins with 'entail' (%s): the last one is taken for it",
                NAME,
                folder,
                ", ".join(config.labels),
            )
        return task

    def __post_init__(self) -> None:
        at_least_one(NAME, "max_length", self.max_length)
        check_long(NAME, self.long, self.stride)
        check_choice(NAME, "multi_label", self.multi_label, (True, False))
        given = self.candidate_labels
        if not isinstance(given, str | list | tuple) or not all(isinstance(label, str) for label in given):
            raise UserError(f"task {NAME}: candidate_labels must be a list of labels or a string, got {given!r}")
        for index, label in enumerate(self.labels):
            if not label.strip():
                raise UserError(f"task {NAME}: candidate_labels.{index} is empty")
        if not is_template(self.hypothesis_template):
            raise UserError(
                f"task {NAME}: hypothesis_template must be a text with exactly one {{}}, for the label, and no other "
                "field in braces, width, conversion, attribute or index"
            )
        if len(self.config.labels) < 2 and (self.multi_label or len(self.labels) == 1):
            raise UserError(
                f"task {NAME}: the checkpoint has one label; multi_label, or one candidate, needs a head "
                "with entailment and contradiction"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The candidate labels, in the order given."""
        given = self.candidate_labels
        return tuple(part.strip() for part in given.split(",") if part.strip()) if isinstance(given, str) else (*given,)

    @property
    def result_width(self) -> int:
        return len(self.config.labels)

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> int:
        return len(columns["text"]) * len(self.labels)

    @property
    def schema(self) -> pa.Schema:
        """`labels`: all of them, best first. `tokens` are those of all the document's pairs."""
        return pa.schema([("labels", pa.list_(LABEL)), *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """A pair of text and hypothesis for each label. Every text is tokenized once, not once a label.

        Raises UserError where there are no labels: they may come with a call, after the checkpoint was loaded.
        """
        if not self.labels:
            raise UserError(f"task {NAME}: candidate_labels is missing: the labels to choose from")
        tokenizer.check_pairs()
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        single = Template.of(tokenizer.backend_tokenizer, pair=False)
        pair = Template.of(tokenizer.backend_tokenizer, pair=True)
        hypotheses = tokenizer.encode_ragged(
            [self.hypothesis_template.format(label) for label in self.labels], max_length=limit, truncation=WHOLE
        )
        rooms = limit - pair.added - (hypotheses.lengths - single.added)
        if rooms.min() < 1:
            raise UserError(
                f"task {NAME}: the hypothesis of candidate_labels.{rooms.argmin()} leaves no room for a text in "
                f"{limit} tokens"
            )
        by_windows = self.long == "windows"
        texts = tokenizer.encode_ragged(
            columns["text"].combine_chunks(),
            # One token more than there is room for shows that tokens were lost.
            max_length=int(rooms.max()) + 1 + single.added,
            truncation=WHOLE if by_windows else "longest_first",
        )
        sizes, left = texts.lengths - single.added, tokenizer.truncation_side == "left"
        if by_windows:
            room = int(rooms.min())  # the same windows for all labels
            stride = min(default_stride(limit), room - 1) if self.stride is None else self.stride
            check_stride(NAME, "stride", stride, room)
            document, first, last = window_spans(sizes, room, stride, left=left)
            rooms = np.full_like(rooms, room)
        else:
            document, first, last = np.arange(len(sizes)), np.zeros_like(sizes), sizes
        kept = np.minimum((last - first)[:, None], rooms)
        start = (last[:, None] - kept if left else np.broadcast_to(first[:, None], kept.shape)).ravel()
        of_text, of_label = np.repeat(document, len(rooms)), np.tile(np.arange(len(rooms)), len(document))
        ids, splits, _ = joined_parts(
            [
                (np.array(pair.head, np.int32), 0, len(pair.head)),
                (texts.input_ids, texts.row_splits[:-1][of_text] + len(single.head) + start, kept.ravel()),
                (np.array(pair.middle, np.int32), 0, len(pair.middle)),
                (
                    hypotheses.input_ids,
                    hypotheses.row_splits[:-1][of_label] + len(single.head),
                    hypotheses.lengths[of_label] - single.added,
                ),
                (np.array(pair.tail, np.int32), 0, len(pair.tail)),
            ],
            len(of_text),
        )
        own = own_tokens(document, first, last, single.added)
        return pa.table(
            {
                "input_ids": lists(splits, ids),
                "document": pa.array(of_text, pa.int32()),
                "own": pa.array(np.repeat(own, len(rooms)), pa.int32()),
                "truncated": pa.array((kept < (last - first)[:, None]).ravel()),
            }
        )

    def head(self) -> nn.Module:
        return classifier(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits `(N, labels of the checkpoint)`."""
        return logits_of(head, hidden, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        count = len(self.labels)
        scores = self.scores(raw.reshape(-1, count, raw.shape[-1]).astype(np.float64))
        if self.long == "windows":
            scores = averaged(scores, encoded.take(pa.array(np.arange(0, encoded.num_rows, count))))
        scores = scores.astype(np.float32)
        # As in transformers, of equal scores the later label comes first.
        order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
        names = pa.array(self.labels, pa.string()).take(pa.array(order.ravel()))
        values = pa.array(np.take_along_axis(scores, order, axis=1).ravel())
        splits = pa.array(np.arange(len(scores) + 1, dtype=np.int32) * count)
        ranked = pa.ListArray.from_arrays(splits, pa.StructArray.from_arrays([names, values], fields=list(LABEL)))
        rows = document_splits(encoded)
        counted = [
            pa.array(summed(lengths(encoded), rows), pa.int32()),
            pa.array(summed(encoded["truncated"].to_numpy().astype(np.int32), rows) > 0),
            *([pa.array(np.diff(rows) // count, pa.int32())] if self.long == "windows" else []),
        ]
        return pa.table([ranked, *counted], schema=self.schema)

    def scores(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores `(D, candidates)` of logits `(D, candidates, labels of the checkpoint)`."""
        yes = entailment(self.config)
        if self.multi_label or len(self.labels) == 1:
            both: NDArray[np.float64] = softmax(logits[..., [-1 if yes == 0 else 0, yes]])
            return both[..., 1]
        return softmax(logits[..., yes])

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """As in transformers: `labels`, `scores`, best first, and the text as `sequence` where there are `columns`."""
        texts = [None] * table.num_rows if columns is None else columns["text"].to_pylist()
        return [
            ({} if text is None else {"sequence": text})
            | {"labels": [one["label"] for one in ranked], "scores": [one["score"] for one in ranked]}
            for text, ranked in zip(texts, table["labels"].to_pylist(), strict=True)
        ]


def entailment(config: XLMRobertaConfig) -> int:
    """The checkpoint's label that says yes; -1, the last, where no name begins so."""
    return next((i for name, i in (config.label2id or {}).items() if name.lower().startswith("entail")), -1)


def is_template(template: object) -> bool:
    """Whether it is a text with one plain `{}`. A width such as `{:>300000000}` would take memory without bound."""
    if not isinstance(template, str):
        return False
    try:
        named = [field[1:] for field in Formatter().parse(template) if field[1] is not None]
    except ValueError:
        return False
    return named == [("", "", None)]
