"""`perplexity`: how well a causal checkpoint foretells a text, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.tasks.encoded import length_limit
from xlmr_ray.tasks.likelihood import FIELDS, Likelihoods, language_model, likelihood_answers, log_probabilities
from xlmr_ray.tasks.long_documents import check_long
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked_options
from xlmr_ray.tasks.windows import document_splits, gather_indices, lists, row_splits, window_spans
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "perplexity"


@dataclass(frozen=True, kw_only=True)
class Perplexity(EncoderTask):
    """The exponential of the mean negative log-probability of every token but the first, given those before it: of the
    loss that transformers' causal model has with `labels=input_ids`.

    Options:
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`, slices of the document's tokens. Each token is
      scored once, in the first window that has it, as in transformers' guide on models of fixed length, whose stride is
      what remains: the tokens that a window adds (default: cut).
    - `stride`: tokens that neighbouring windows share, at least 1 (default: half of `max_length`).

    Output: `perplexity`, null for a text of which no token is predicted; `log_likelihood`, the sum, natural logarithm;
    `tokens`, how many are in it; `truncated`, and `windows` where texts are read in windows.
    """

    roles = ("text",)
    unit = "target"
    reads = "target"

    long: str = "cut"
    stride: int | None = None
    max_length: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> Perplexity:
        task = cls(**checked_options(cls, NAME, options), config=config)
        if not config.is_decoder:
            raise UserError(
                f"task {NAME}: {folder} is no causal model (config.json: is_decoder is not true), its tokens see those "
                "after them: use pseudo-perplexity"
            )
        return task

    def __post_init__(self) -> None:
        check_long(NAME, self.long, self.stride)
        if self.stride is not None:
            # Without a shared token, nothing would foretell the first one of a window.
            at_least_one(NAME, "stride", self.stride)
        at_least_one(NAME, "max_length", self.max_length)

    @property
    def schema(self) -> pa.Schema:
        windows = [("windows", pa.int32())] if self.long == "windows" else []
        return pa.schema([*FIELDS, ("truncated", pa.bool_()), *windows])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        stride = (max(limit // 2, 1) if self.stride is None else self.stride) if self.long == "windows" else 0
        if stride >= limit:
            raise UserError(f"task {NAME}: stride {stride} must be less than the {limit} tokens of a window")
        ragged = tokenizer.encode_ragged(
            columns["text"].combine_chunks(),
            max_length=limit,
            truncation="longest_first" if self.long == "cut" else "do_not_truncate",
        )
        document, first, last = window_spans(ragged.lengths, limit, stride)
        where = gather_indices(ragged.row_splits[document] + first, last - first)
        splits = row_splits(last - first)
        # A token's target is the one after it, unless that is in another window, or was in the one before.
        following = np.append(ragged.input_ids, np.int32(IGNORED))[where + 1]
        place = where - np.repeat(ragged.row_splits[document], last - first)
        seen = np.where(first > 0, np.roll(last, 1), 0)
        scored = (place + 1 < np.repeat(last, last - first)) & (place + 1 >= np.repeat(seen, last - first))
        return pa.table(
            {
                "input_ids": lists(splits, ragged.input_ids[where]),
                "targets": lists(splits, np.where(scored, following, np.int32(IGNORED))),
                "document": pa.array(document, pa.int32()),
                "truncated": pa.array(ragged.truncated[document]),
            }
        )

    def head(self) -> nn.Module:
        return language_model(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The log-probability of each target, `(M)`."""
        return log_probabilities(head, hidden, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        splits = document_splits(encoded)
        columns = [*Likelihoods.of(raw, encoded).columns(), encoded["truncated"].take(pa.array(splits[:-1]))]
        if self.long == "windows":
            columns.append(pa.array(np.diff(splits).astype(np.int32)))
        return pa.table(columns, schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`{"perplexity": …, "log_likelihood": …, "tokens": …}` of each text; transformers has no such pipeline."""
        return likelihood_answers(table)
