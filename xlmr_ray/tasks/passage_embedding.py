"""`passage-embedding`: a vector for each passage of a document, pooled from one pass over all of it (late chunking)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import lengths
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.unfit import WRONG_SPANS, UnfitRows
from xlmr_ray.tasks.vector_precision import FLOATS, as_column, stored_type
from xlmr_ray.tasks.windows import (
    check_stride,
    default_stride,
    document_splits,
    document_tokens,
    first_rows,
    flat,
    lists,
    row_splits,
    windows,
)
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "passage-embedding"
# A sentence ends at these, with the quotes and brackets that follow, or where a line ends (after Unicode's
# Sentence_Terminal property, UAX #44, without the full stop inside numbers and the like: a space must follow it).
SENTENCE = re.compile(r"(?:[.!?…؟۔।॥։።]+[\"'»”’)\]]*(?=\s)|[。！？｡]+[」』”’）]*|\n)\s*")


@dataclass(frozen=True, kw_only=True)
class PassageEmbedding(EncoderTask):
    """The encoder reads the whole document, so that each token's state knows what stands around its passage; a
    passage's vector is the mean of its tokens' states, special tokens left out (late chunking; Guenther et al., 2024,
    arXiv:2409.04701).

    Options:
    - `passage`: `tokens`, so many to each passage, or `sentences` (default: tokens).
    - `spans`: the passages are given: a text's `spans` are a list of [start, end] in its characters, which may overlap,
      or its JSON; a token that reaches into a span counts in it (default: where the column is named).
    - `passage_tokens`: tokens of a passage; the last one of a text may have fewer (default: 128).
    - `normalize`: vectors of length 1 (default: what the checkpoint's folder says, else false).
    - `prompt`: text put before every document, part of no passage (default: none).
    - `precision`: of the stored numbers, `float32` or `float16` (default: float32).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `stride`: tokens that neighbouring windows of a longer document share; a shared token's state is that of the
      window which shows more around it (default: an eighth of `max_length`).

    Output: `embeddings: list<fixed_size_list<float>>`, `start` and `end: list<int32>`, the passages' characters in the
    text; `tokens`, `truncated` (never), `windows`.
    """

    unit = "token"
    span_roles = ("spans",)
    optional_roles: ClassVar[Mapping[str, str]] = {"spans": "spans"}

    passage: str = "tokens"
    passage_tokens: int | None = None
    normalize: bool | None = None
    prompt: str = ""
    precision: str = "float32"
    max_length: int | None = None
    stride: int | None = None
    spans: bool = field(default=False, metadata={"added": True})
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> PassageEmbedding:
        return cls(**checked_options(cls, NAME, options), config=config, folder=read_sentence_config(folder))

    def __post_init__(self) -> None:
        check_choice(NAME, "passage", self.passage, ("tokens", "sentences"))
        check_choice(NAME, "normalize", self.normalize, (None, True, False))
        check_choice(NAME, "spans", self.spans, (True, False))
        check_choice(NAME, "precision", self.precision, FLOATS)
        at_least_one(NAME, "passage_tokens", self.passage_tokens)
        at_least_one(NAME, "max_length", self.max_length)
        if self.passage == "sentences" and self.passage_tokens is not None:
            raise UserError(f"task {NAME}: passage_tokens is for passage: tokens, got passage: sentences")
        if self.spans and (self.passage != "tokens" or self.passage_tokens is not None):
            raise UserError(f"task {NAME}: passage and passage_tokens are for passages that no column of spans gives")
        if self.folder is not None and self.folder.dense:
            raise UserError(f"task {NAME}: the folder has a layer behind its pooling, which passages do not support")

    @property
    def roles(self) -> tuple[str, ...]:
        return ("text", "spans") if self.spans else ("text",)

    @property
    def result_width(self) -> int:
        return self.config.hidden_size

    @property
    def vector_width(self) -> int:
        return self.config.hidden_size

    @property
    def normalized(self) -> bool:
        """Whether vectors are brought to length 1."""
        return (self.folder is not None and self.folder.normalize) if self.normalize is None else self.normalize

    @property
    def schema(self) -> pa.Schema:
        vector = stored_type(self.precision, self.config.hidden_size)
        spans = [("start", pa.list_(pa.int32())), ("end", pa.list_(pa.int32()))]
        counts = [("tokens", pa.int32()), ("truncated", pa.bool_()), ("windows", pa.int32())]
        return pa.schema([("embeddings", pa.list_(vector)), *spans, *counts])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """An encoded table of `windows`, with each token's `passage` in its document, -1 for those of none. Of `spans`
        all tokens of the text are in passage 0, and a document's first row has `spans: list<int32>`, for each its
        characters and its tokens, [start, end, first, last + 1], tokens counted from the document's first of them.
        """
        texts = columns["text"]
        if self.prompt:
            texts = pc.binary_join_element_wise(self.prompt, texts, "")
        tokenizer = sentence_tokenizer(self.folder, tokenizer)
        limit = sentence_limit(NAME, self.max_length, self.folder, self.config, tokenizer)
        stride = default_stride(limit) if self.stride is None else self.stride
        check_stride(NAME, "stride", stride, limit - tokenizer.num_special_tokens_to_add())
        encoded = windows(texts, tokenizer, max_length=limit, stride=stride, offsets=True)
        start, end = (flat(encoded[name]).to_numpy() for name in ("start", "end"))
        splits = encoded["input_ids"].combine_chunks().offsets.to_numpy()
        document = np.repeat(encoded["document"].to_numpy(), np.diff(splits))
        counted = shown_best(start >= 0, document, splits, encoded) & (end > len(self.prompt))
        passage = np.full(len(start), -1, np.int32)
        index = np.flatnonzero(counted)
        if self.spans:
            passage[index] = 0
            given = passage_spans(columns["spans"], columns["text"])
            own = np.searchsorted(document[index], np.arange(len(given) + 1))
            at = len(self.prompt)
            encoded = with_spans(encoded, given, own, start[index] - at, end[index] - at)
        elif self.passage == "tokens":
            first = np.searchsorted(document[index], document[index])
            passage[index] = (np.arange(len(index)) - first) // (self.passage_tokens or 128)
        else:
            for row, text in enumerate(texts.to_pylist()):
                ends = [match.end() for match in SENTENCE.finditer(text)]
                own = index[slice(*np.searchsorted(document[index], [row, row + 1]))]
                # A sentence without tokens is none: the numbers of those with tokens follow one another.
                found = np.searchsorted(ends, start[own], side="right")
                passage[own] = np.unique(found, return_inverse=True)[1]
        moved = {"start": np.maximum(start - len(self.prompt), 0), "end": end - len(self.prompt)}
        encoded = encoded.drop_columns(["start", "end"])
        for name, values in ({"passage": passage} | moved).items():
            column = pa.ListArray.from_arrays(pa.array(splits), pa.array(values.astype(np.int32)))
            encoded = encoded.append_column(name, column)
        return encoded

    def results(self, encoded: pa.Table) -> int:
        found = super().results(encoded)
        if self.spans:
            _, _, first, last = flat(encoded["spans"].drop_null()).to_numpy().reshape(-1, 4).T
            found += int((last - first).sum()) * self.config.hidden_size
        return found

    def head(self) -> nn.Module:
        from torch import nn

        return nn.Module()

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The tokens' states `(T, hidden)`."""
        return hidden[: batch.tokens]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        of_rows = document_splits(encoded)
        document = np.repeat(np.repeat(np.arange(len(of_rows) - 1), np.diff(of_rows)), lengths(encoded))
        passage = flat(encoded["passage"]).to_numpy()
        index = np.flatnonzero(passage >= 0)
        document, passage = document[index], passage[index]
        if self.spans:
            given = encoded["spans"].take(pa.array(of_rows[:-1]))
            counts = pc.list_value_length(given).to_numpy() // 4
            starts, ends, first, last = flat(given).to_numpy().reshape(-1, 4).T
            before = np.searchsorted(document, np.repeat(np.arange(len(counts)), counts))
            first, last = first + before, last + before
        else:
            opens = np.ones(len(index), np.bool_)
            opens[1:] = (document[1:] != document[:-1]) | (passage[1:] != passage[:-1])
            first = np.flatnonzero(opens)
            last = np.append(first[1:], len(index))[: len(first)]
            counts = np.bincount(document[first], minlength=len(of_rows) - 1)
            starts, ends = (flat(encoded[name]).to_numpy()[index] for name in ("start", "end"))
            if len(first):
                starts, ends = np.minimum.reduceat(starts, first), np.maximum.reduceat(ends, first)
        numbers = np.zeros((0, self.config.hidden_size))
        if len(first):
            states = np.concatenate([raw[index].astype(np.float64), np.zeros((1, raw.shape[1]))])
            sums = np.add.reduceat(states, np.column_stack([first, last]).ravel(), axis=0)[::2]
            numbers = sums / (last - first)[:, None]
        if self.normalized:
            numbers = numbers / np.maximum(np.linalg.norm(numbers, axis=1, keepdims=True), 1e-12)
        per_text = pa.array(row_splits(counts), pa.int32())
        vectors = as_column(numbers.astype(np.float32), self.precision, None)
        lists = [pa.ListArray.from_arrays(per_text, pa.array(values)) for values in (starts, ends)]
        truncated = encoded["truncated"].take(pa.array(of_rows[:-1]))
        columns = [pa.ListArray.from_arrays(per_text, vectors), *lists, pa.array(document_tokens(encoded)), truncated]
        return pa.table([*columns, pa.array(np.diff(of_rows).astype(np.int32))], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`[{"start", "end", "embedding"}, ...]` for each text."""
        found = []
        for row in table.select(["start", "end", "embeddings"]).to_pylist():
            spans = zip(row["start"], row["end"], row["embeddings"], strict=True)
            found.append([{"start": a, "end": b, "embedding": np.array(one)} for a, b, one in spans])
        return found


def passage_spans(column: pa.ChunkedArray, texts: pa.ChunkedArray) -> list[NDArray[np.int64]]:
    """The spans `(S, 2)` of each text, from lists or from their JSON. Raises UnfitRows."""
    found, failures = [], {}
    for index, (value, text) in enumerate(zip(column.to_pylist(), texts.to_pylist(), strict=True)):
        try:
            given = json.loads(value) if isinstance(value, str) else value
            if any(list(map(type, span)) != [int, int] for span in given):
                raise TypeError
            spans = np.array(given, np.int64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError, RecursionError):
            failures[index] = (WRONG_SPANS, "the spans are no list of [start, end]")
            continue
        bad = (spans[:, 0] < 0) | (spans[:, 0] >= spans[:, 1]) | (spans[:, 1] > len(text))
        if bad.any():
            one = int(bad.argmax())
            got = f"[{spans[one, 0]}, {spans[one, 1]}]"
            failures[index] = (WRONG_SPANS, f"span {one} is {got} in a text of {len(text)} characters")
        found.append(spans)
    if failures:
        raise UnfitRows(failures)
    return found


def with_spans(
    encoded: pa.Table,
    given: list[NDArray[np.int64]],
    own: NDArray[np.int64],
    start: NDArray[np.int64],
    end: NDArray[np.int64],
) -> pa.Table:
    """The encoded table with the column `spans`. Document d's tokens are `own[d]` to `own[d + 1]` of those with
    characters `start` and `end`. Raises UnfitRows for a span without tokens.
    """
    values, failures = [], {}
    for row, spans in enumerate(given):
        tokens = slice(own[row], own[row + 1])
        first = np.searchsorted(end[tokens], spans[:, 0], side="right")
        last = np.searchsorted(start[tokens], spans[:, 1], side="left")
        if (last <= first).any():
            failures[row] = (WRONG_SPANS, f"span {int((last <= first).argmax())} has no token")
        values.append(np.column_stack([spans, first, last]).ravel())
    if failures:
        raise UnfitRows(failures)
    splits = row_splits(np.array([len(one) for one in values], np.int64))
    column = lists(splits, np.concatenate([np.zeros(0, np.int64), *values]).astype(np.int32))
    return encoded.append_column("spans", first_rows(column, encoded))


def shown_best(
    of_text: NDArray[np.bool_], document: NDArray[np.int64], splits: NDArray[np.int64], encoded: pa.Table
) -> NDArray[np.bool_]:
    """Which tokens `(T)` of windows count: of each token of the text once, in the window that shows more around it.

    Of the tokens that a window shares with the one before it, the first half are the earlier window's, the rest its
    own. `of_text` are the tokens that are no special ones, and `splits` those of the windows' tokens.
    """
    counted = of_text.copy()
    own = encoded["own"].to_numpy()
    of_row = encoded["document"].to_numpy()
    for row in range(1, len(of_row)):
        if of_row[row] != of_row[row - 1]:
            continue
        here = splits[row] + np.flatnonzero(of_text[splits[row] : splits[row + 1]])
        before = splits[row - 1] + np.flatnonzero(of_text[splits[row - 1] : splits[row]])
        shared = len(here) - int(own[row])
        counted[here[: shared // 2]] = False
        counted[before[len(before) - (shared - shared // 2) :]] = False
    return counted
