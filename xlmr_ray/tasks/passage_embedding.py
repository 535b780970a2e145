"""`passage-embedding`: a vector for each passage of a document, pooled from one pass over all of it (late chunking)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.tasks.encoded import lengths
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked, one_of
from xlmr_ray.tasks.vector_precision import FLOATS, as_column, stored_type
from xlmr_ray.tasks.windows import (
    check_stride,
    default_stride,
    document_splits,
    document_tokens,
    flat,
    row_splits,
    windows,
)
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

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

    roles = ("text",)
    unit = "token"

    passage: str = "tokens"
    passage_tokens: int | None = None
    normalize: bool | None = None
    prompt: str = ""
    precision: str = "float32"
    max_length: int | None = None
    stride: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> "PassageEmbedding":
        return cls(**checked(cls, NAME, options), config=config, folder=read_sentence_config(folder))

    def __post_init__(self) -> None:
        one_of(NAME, "passage", self.passage, ("tokens", "sentences"))
        one_of(NAME, "normalize", self.normalize, (None, True, False))
        one_of(NAME, "precision", self.precision, FLOATS)
        at_least_one(NAME, "passage_tokens", self.passage_tokens)
        at_least_one(NAME, "max_length", self.max_length)
        if self.passage == "sentences" and self.passage_tokens is not None:
            raise UserError(f"task {NAME}: passage_tokens is for passage: tokens, got passage: sentences")
        if self.folder is not None and self.folder.dense:
            raise UserError(f"task {NAME}: the folder has a layer behind its pooling, which passages do not support")

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
        """An encoded table of `windows`, with each token's `passage` in its document, -1 for those of none."""
        texts = columns["text"]
        if self.prompt:
            texts = pa.compute.binary_join_element_wise(self.prompt, texts, "")
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
        if self.passage == "tokens":
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

    def head(self) -> nn.Module:
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
        opens = np.ones(len(index), np.bool_)
        opens[1:] = (document[1:] != document[:-1]) | (passage[1:] != passage[:-1])
        begins = np.flatnonzero(opens)
        counts = np.bincount(document[begins], minlength=len(of_rows) - 1)
        numbers = np.zeros((0, self.config.hidden_size))
        starts = ends = np.zeros(0, np.int32)
        if len(begins):
            sizes = np.diff(np.append(begins, len(index)))
            numbers = np.add.reduceat(raw[index].astype(np.float64), begins, axis=0) / sizes[:, None]
            starts = np.minimum.reduceat(flat(encoded["start"]).to_numpy()[index], begins)
            ends = np.maximum.reduceat(flat(encoded["end"]).to_numpy()[index], begins)
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
