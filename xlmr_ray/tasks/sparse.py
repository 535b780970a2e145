"""`sparse`: a weight for each distinct token of a text, for lexical search with learned weights (bge-m3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.checkpoint.token_heads import SPARSE_FILE, TokenHead, read_token_head
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.encoded import documents, lengths
from xlmr_ray.tasks.long_documents import check_long, encode_documents, length_columns, length_fields
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.windows import flat, row_splits
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "sparse"
NO_TERM = -1  # in `terms`: a token that has no weight


@dataclass(frozen=True, kw_only=True)
class Sparse(EncoderTask):
    """Weights as BGE-M3 has them (Chen et al., 2024, arXiv:2402.03216, section 3.2): a linear layer over each token's
    last hidden state, ReLU, and the largest of a token's occurrences; special and unknown tokens have none.

    Options:
    - `head_file`: a file of the checkpoint's folder with the layer's `weight (1, hidden)` and `bias` (default:
      `sparse_linear.pt`, bge-m3's).
    - `pieces`: give the tokens' pieces of the vocabulary, too (default: false).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`, of whose weights the largest count (default:
      cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Output: `sparse: map<int32, float>`, token id to weight, ids ascending, weights above 0; with `pieces` the column
    `pieces: list<string>` in the same order; `tokens`, `truncated`, and `windows` where texts are read in windows.
    """

    roles = ("text",)
    unit = "token"
    fixed_options = ("head_file",)

    head_file: str = SPARSE_FILE
    pieces: bool = False
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    layer: TokenHead = field(metadata={"option": False})
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> Sparse:
        known = checked_options(cls, NAME, options)
        layer = read_token_head(folder, known.get("head_file", SPARSE_FILE), config.hidden_size, 1)
        return cls(**known, layer=layer, config=config, folder=read_sentence_config(folder))

    def __post_init__(self) -> None:
        check_choice(NAME, "pieces", self.pieces, (True, False))
        at_least_one(NAME, "max_length", self.max_length)
        check_long(NAME, self.long, self.stride)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.layer.file,)

    @property
    def schema(self) -> pa.Schema:
        pieces = [("pieces", pa.list_(pa.string()))] if self.pieces else []
        return pa.schema([("sparse", pa.map_(pa.int32(), pa.float32())), *pieces, *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """An encoded table with `terms: list<int32>`, a token's id, or -1 where it has no weight; and its `pieces`."""
        tokenizer = sentence_tokenizer(self.folder, tokenizer)
        limit = sentence_limit(NAME, self.max_length, self.folder, self.config, tokenizer)
        encoded = encode_documents(
            NAME, columns["text"], None, tokenizer, max_length=limit, long=self.long, stride=self.stride
        )
        return with_terms(encoded, tokenizer, pieces=self.pieces)

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.tasks.token_heads import LexicalLayer

        return nn.ModuleDict({"sparse_linear": LexicalLayer(self.layer)})

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Weights `(T, 1)` of the tokens, 0 or more."""
        weights: Tensor = head.get_submodule("sparse_linear")(hidden[: batch.tokens])
        return weights

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        splits, terms, weights, where = largest_weights(raw[:, 0], encoded)
        columns = [pa.MapArray.from_arrays(pa.array(splits, pa.int32()), pa.array(terms), pa.array(weights))]
        if self.pieces:
            pieces = flat(encoded["pieces"]).take(pa.array(where))
            columns.append(pa.ListArray.from_arrays(pa.array(splits, pa.int32()), pieces))
        return pa.table([*columns, *length_columns(self.long, encoded)], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`{token id: weight}` for each text, or `{piece: weight}` with `pieces`."""
        weights = [dict(row) for row in table["sparse"].to_pylist()]
        if not self.pieces:
            return weights
        named = zip(table["pieces"].to_pylist(), weights, strict=True)
        return [dict(zip(pieces, of_ids.values(), strict=True)) for pieces, of_ids in named]


def with_terms(encoded: pa.Table, tokenizer: XLMRobertaTokenizer, *, pieces: bool = False) -> pa.Table:
    """The encoded table with `terms: list<int32>`, and `pieces: list<string>` where asked for."""
    ids = flat(encoded["input_ids"]).to_numpy()
    splits = encoded["input_ids"].combine_chunks().offsets
    none = [tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    terms = np.where(np.isin(ids, none), np.int32(NO_TERM), ids)
    encoded = encoded.append_column("terms", pa.ListArray.from_arrays(splits, pa.array(terms, pa.int32())))
    if pieces:
        known, index = np.unique(ids, return_inverse=True)
        words = pa.array(tokenizer.convert_ids_to_tokens(known.tolist()), pa.string()).take(pa.array(index))
        encoded = encoded.append_column("pieces", pa.ListArray.from_arrays(splits, words))
    return encoded


def largest_weights(
    weights: NDArray[np.float32], encoded: pa.Table
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Of the tokens' weights `(T)`, the largest of each document's distinct terms with a weight above 0, ascending by
    term: the documents' splits `(D + 1)`, terms `(W)`, weights `(W)`, and the index of the token that each is of `(W)`.
    """
    of_row = documents(encoded)
    of_row = np.cumsum(np.concatenate([[0], np.diff(of_row) != 0])) if len(of_row) else of_row
    terms = flat(encoded["terms"]).to_numpy()
    document = np.repeat(of_row, lengths(encoded))
    where = np.flatnonzero((terms != NO_TERM) & (weights > 0))
    where = where[np.lexsort((-weights[where], terms[where], document[where]))]
    first = np.ones(len(where), np.bool_)
    first[1:] = (terms[where][1:] != terms[where][:-1]) | (document[where][1:] != document[where][:-1])
    where = where[first]
    counts = np.bincount(document[where], minlength=int(of_row[-1]) + 1 if len(of_row) else 0)
    return row_splits(counts), terms[where], weights[where], where
