"""`question-answering`: the span of a context that answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.answer_spans import best_spans, merged_answers, probabilities
from xlmr_ray.tasks.encoded import length_limit, lengths
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.windows import (
    check_stride,
    document_splits,
    document_tokens,
    first_rows,
    flat,
    gather_indices,
    joined_parts,
    lists,
    own_tokens,
    row_splits,
    window_spans,
)
from xlmr_ray.tokenizer.ragged import Template, TokenizerError, as_strings, encode_batch
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "question-answering"
MAX_SEQ_LEN, MAX_STRIDE, LONG_QUESTION = 384, 128, 64  # as in transformers
OTHER, CLS = -1, -2  # instead of a character: a token outside of the context, one that stands for no answer
Spans = tuple[list[int], list[int], list[float]]  # starts, ends and scores


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(EncoderTask):
    """The spans of a context that answer a question. A score is the probability of a start times that of an end in
    their window, as in transformers; answers of equal text are added up, over windows, too, so that a score may be more
    than 1. Where nothing can be an answer, the answer is empty and has score 0; unlike in transformers no other answers
    have score 0, so there may be fewer than `top_k`.

    Options:
    - `top_k`: answers (default: 1).
    - `max_answer_len`: tokens of an answer, at most (default: 15).
    - `align_to_words`: answers are stretched to whole words (default: true).
    - `handle_impossible_answer`: an empty answer may win (default: false).
    - `max_seq_len`: tokens of a window over a long context (default: what the checkpoint allows, 384 at most).
    - `doc_stride`: tokens that neighbouring windows share (default: half of a window, 128 at most).
    - `max_question_len`: tokens of a question; a longer one is cut, and flagged (default: all of them as long as each
      window adds at least a sixteenth of its length; of a question that leaves less room, 64 or fewer). Contexts are
      never cut.

    Output: `answer`, `score`, `start`, `end` (characters of the context), or with more than one `top_k` `answers:
    list<struct<answer, score, start, end>>`; `tokens` of question and context, shared ones counted once; `truncated`,
    where the question was cut.
    """

    roles = ("question", "context")
    unit = "token"
    result_width = 2
    stride_option, length_option = "doc_stride", "max_seq_len"
    request_bounds: ClassVar[Mapping[str, int | str]] = {"top_k": 1000, "max_answer_len": 1000}
    architectures = ("ForQuestionAnswering",)

    top_k: int = 1
    max_answer_len: int = 15
    align_to_words: bool = True
    handle_impossible_answer: bool = False
    max_seq_len: int | None = None
    doc_stride: int | None = None
    max_question_len: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> QuestionAnswering:
        return cls(**checked_options(cls, NAME, options), config=config)

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len"):
            if getattr(self, name) is None:
                raise UserError(f"task {NAME}: {name} must be a whole number from 1 on, got None")
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            at_least_one(NAME, name, getattr(self, name))
        if self.max_seq_len is not None and self.max_seq_len > self.config.max_length:
            raise UserError(
                f"task {NAME}: max_seq_len {self.max_seq_len} is more than the {self.config.max_length} tokens that "
                "the model has positions for"
            )
        for name in ("align_to_words", "handle_impossible_answer"):
            check_choice(NAME, name, getattr(self, name), (True, False))

    @property
    def answer(self) -> pa.StructType:
        return pa.struct([("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())])

    @property
    def schema(self) -> pa.Schema:
        best = list(self.answer) if self.top_k == 1 else [("answers", pa.list_(self.answer))]
        return pa.schema([*best, ("tokens", pa.int32()), ("truncated", pa.bool_())])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """An encoded table of windows, with the `context` in the first row of each document, and for each token of a
        context the characters at which an answer would `start` or `end` with it.
        """
        limit = length_limit(NAME, self.max_seq_len, self.config.max_length, tokenizer)
        if self.max_seq_len is None:
            limit = min(limit, MAX_SEQ_LEN)
        single, template = (Template.of(tokenizer.backend_tokenizer, pair=pair) for pair in (False, True))
        stride = min(limit // 2, MAX_STRIDE) if self.doc_stride is None else self.doc_stride
        room = limit - template.added
        check_stride(NAME, "doc_stride", stride, room - 1)
        questions = tokenizer.encode_ragged(columns["question"].combine_chunks(), max_length=limit)
        contexts = Contexts.of(columns["context"], tokenizer)
        asked = questions.lengths - single.added
        kept = self.question_tokens(asked, contexts.lengths, questions.truncated, room, stride)
        left = tokenizer.truncation_side == "left"
        asks = questions.row_splits[:-1] + len(single.head) + (asked - kept if left else 0)
        document, first, last = window_spans(contexts.lengths, room - kept, stride, left=left)
        head, middle, tail = (np.array(ids, np.int32) for ids in (template.head, template.middle, template.tail))
        input_ids, splits, part = joined_parts(
            [
                (head, 0, len(head)),
                (questions.input_ids, asks[document], kept[document]),
                (middle, 0, len(middle)),
                (contexts.input_ids, contexts.begins[document] + first, last - first),
                (tail, 0, len(tail)),
            ],
            len(document),
        )
        start = np.where(input_ids == tokenizer.cls_token_id, np.int32(CLS), np.int32(OTHER))
        end = start.copy()
        start[part == 3], end[part == 3] = contexts.characters(document, first, last, words=self.align_to_words)
        encoded = pa.table(
            {
                "input_ids": lists(splits, input_ids),
                "document": pa.array(document, pa.int32()),
                "own": pa.array(own_tokens(document, first, last, template.added + kept[document]), pa.int32()),
                "truncated": pa.array((questions.truncated | (kept < asked))[document]),
                "start": lists(splits, start),
                "end": lists(splits, end),
            }
        )
        return encoded.append_column("context", first_rows(columns["context"].combine_chunks(), encoded))

    def question_tokens(
        self,
        asked: NDArray[np.int64],
        context: NDArray[np.int64],
        longer: NDArray[np.bool_],
        room: int,
        stride: int,
    ) -> NDArray[np.int64]:
        """How many tokens of each question to keep, `(D)`. `asked` and `context` are lengths, `longer` says which
        questions have even more tokens than asked; question and context have `room` together.
        """
        if self.max_question_len is not None:
            if self.max_question_len >= room - stride:
                raise UserError(
                    f"task {NAME}: max_question_len {self.max_question_len} and doc_stride {stride} leave windows of "
                    f"{room} tokens no room to go over a context; give less of either or more max_seq_len"
                )
            return np.minimum(asked, self.max_question_len)
        step = max(room // 16, 1)
        most = max(min(LONG_QUESTION, room - stride - step), 1)
        free = room - asked
        too_long = longer | ((context > free) & (free - stride < step))
        return np.where(too_long, np.minimum(asked, most), asked)

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.model.meta_device import shapes_only

        with shapes_only():
            return nn.ModuleDict({"qa_outputs": nn.Linear(self.config.hidden_size, 2)})

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits `(T, 2)` of an answer's start and end."""
        logits: Tensor = head.get_submodule("qa_outputs")(hidden)
        return logits[: batch.tokens]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        splits = document_splits(encoded)
        opening = encoded.take(pa.array(splits[:-1]))
        found = [
            merged_answers(context, spans, null_score, self.top_k)
            for context, (spans, null_score) in zip(
                opening["context"].to_pylist(), self.candidates(raw, encoded, splits), strict=True
            )
        ]
        flattened = [answer for answers in found for answer in answers]
        values = [
            pa.array([answer.text for answer in flattened], pa.string()),
            pa.array([answer.score for answer in flattened], pa.float32()),
            pa.array([answer.start for answer in flattened], pa.int32()),
            pa.array([answer.end for answer in flattened], pa.int32()),
        ]
        if self.top_k > 1:
            structs = pa.StructArray.from_arrays(values, fields=list(self.answer))
            ends = row_splits(np.array([len(answers) for answers in found], np.int64))
            values = [pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs)]
        return pa.table([*values, pa.array(document_tokens(encoded)), opening["truncated"]], schema=self.schema)

    def candidates(
        self, raw: NDArray[np.float32], encoded: pa.Table, splits: NDArray[np.int64]
    ) -> Iterator[tuple[list[Spans], float | None]]:
        """For each document, whose windows are at `splits (D + 1)`, the best spans of its windows in characters, and
        the score of an empty answer if that may win.
        """
        start, end = flat(encoded["start"]).to_numpy(), flat(encoded["end"]).to_numpy()
        tokens = row_splits(lengths(encoded))
        chances = probabilities(raw, start != OTHER, tokens)
        # A window's context is its last tokens but those of the template.
        inside = row_splits((start >= 0).astype(np.int32))
        count = inside[tokens[1:]] - inside[tokens[:-1]]
        begin = np.searchsorted(inside, inside[tokens[:-1]], side="right") - 1
        # Some candidates become one when stretched to words; transformers takes so many to have enough.
        top = 2 * self.top_k + 10 if self.align_to_words else self.top_k
        best = best_spans(chances, begin, count, self.max_answer_len, top)
        null = chances[tokens[:-1]].prod(axis=1)
        for opens, closes in pairwise(splits.tolist()):
            spans = [
                (start[first].tolist(), end[last].tolist(), score.tolist())
                for first, last, score in islice(best, closes - opens)
            ]
            yield spans, float(null[opens:closes].min()) if self.handle_impossible_answer else None

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """A mapping an answer; a list of several."""
        if self.top_k == 1:
            return list(table.select(["score", "start", "end", "answer"]).to_pylist())
        return [answers[0] if len(answers) == 1 else answers for answers in table["answers"].to_pylist()]


@dataclass(frozen=True, eq=False)
class Contexts:
    """D contexts of T tokens in all, each kept once however often it is asked: those of context d are the `lengths[d]`
    from `begins[d]` on. `start` and `end` are characters of the text, `word_first` and `word_last` the indices of the
    first and the last token of a token's word, all `(T)`.
    """

    input_ids: NDArray[np.int32]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    word_first: NDArray[np.int64]
    word_last: NDArray[np.int64]

    @classmethod
    def of(cls, texts: pa.ChunkedArray, tokenizer: XLMRobertaTokenizer) -> Contexts:
        """Raises TokenizerError with the index of a context that cannot be encoded."""
        coded = texts.combine_chunks().dictionary_encode()
        which = coded.indices.to_numpy()
        try:
            encodings = encode_batch(
                tokenizer.backend_tokenizer, as_strings(coded.dictionary), offsets=True, add_special_tokens=False
            )
        except TokenizerError as error:
            raise TokenizerError(int(np.argmax(which == error.index)), error.reason) from None
        counts = np.fromiter(map(len, encodings), np.int64, len(encodings))
        total = int(counts.sum())
        splits = row_splits(counts)
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, total)
        places = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        start, end = np.fromiter(places, np.int32, 2 * total).reshape(-1, 2).T
        words = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int64, total)
        opens = np.ones(total, np.bool_)
        opens[1:] = words[1:] != words[:-1]
        opens[splits[:-1][counts > 0]] = True
        firsts = np.flatnonzero(opens)
        word = np.cumsum(opens) - 1
        lasts = np.append(firsts[1:], total)[: len(firsts)] - 1
        return cls(ids, splits[which], counts[which], start, end, firsts[word], lasts[word])

    def characters(
        self, document: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64], *, words: bool
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Where an answer starts that starts with each of the tokens `first` to `last` (exclusive) of these documents
        `(N)`, and where one ends that ends with it; with `words`, as much of its word as is among them.
        """
        begin = self.begins[document] + first
        tokens = gather_indices(begin, last - first)
        if not words:
            return self.start[tokens], self.end[tokens]
        opens = np.maximum(self.word_first[tokens], np.repeat(begin, last - first))
        closes = np.minimum(self.word_last[tokens], np.repeat(begin + last - first - 1, last - first))
        return self.start[opens], self.end[closes]
