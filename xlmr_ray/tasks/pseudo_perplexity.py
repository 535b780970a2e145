"""`pseudo-perplexity`: how well a masked checkpoint guesses each token of a text from all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.tasks.encoded import length_limit, lengths
from xlmr_ray.tasks.likelihood import FIELDS, Likelihoods, language_model, likelihood_answers, log_probabilities
from xlmr_ray.tasks.long_documents import check_long, text_room
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked_options
from xlmr_ray.tasks.windows import (
    check_stride,
    default_stride,
    document_splits,
    gather_indices,
    lists,
    row_splits,
    windows,
)
from xlmr_ray.tokenizer.ragged import Template
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "pseudo-perplexity"
# Tokens of an encoded table: what a list column can count.
MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class PseudoPerplexity(EncoderTask):
    """The exponential of the mean negative log-probability of every token that is not a special one, each masked and
    guessed from all others (Salazar et al. 2020, Masked Language Model Scoring).

    Options:
    - `passes` over a text. `all` masks one token at a time: exact, as many passes as tokens. A number k masks every
      k-th token at once, in k passes that each begin one token later: an approximation, since a token is predicted
      without 1 / k of the others, too; it is exact for texts of up to k tokens (default: 8).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`: each token is scored once, in the window that
      has more text around it (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of the window).

    How near `passes` comes, for a model of two layers trained for minutes on web pages in 20 languages, 50 texts of up
    to 64 tokens each, as the difference of log-perplexities (mean, greatest) and the rank correlation with the exact
    ones:

    - pages that it was not trained on (6.2 on average): k = 8: -0.005, 0.05, 0.997; 4: -0.001, 0.08, 0.996; 2: 0.01,
      0.18, 0.990; 1 (every token masked): 2.4, 3.7, 0.26
    - legal articles, in other languages too (9.2): k = 8: 0.04, 0.86, 0.999; 4: 0.09, 1.8, 0.996; 2: 0.13, 2.2, 0.987

    A better model uses more of the text and may be further off: compare with `all` on a sample.

    Output: `perplexity`, null for a text without tokens; `log_likelihood`, the sum, natural logarithm; `tokens`, how
    many are in it; `truncated`, and `windows` where texts are read in windows.
    """

    roles = ("text",)
    unit = "target"
    reads = "target"
    request_bounds: ClassVar[Mapping[str, int | str]] = {"passes": 512}

    passes: int | str = 8
    long: str = "cut"
    stride: int | None = None
    max_length: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> PseudoPerplexity:
        task = cls(**checked_options(cls, NAME, options), config=config)
        if config.is_decoder:
            raise UserError(
                f"task {NAME}: {folder} is a causal model (config.json: is_decoder is true), its tokens do not see "
                "those after them: use perplexity"
            )
        return task

    def __post_init__(self) -> None:
        passes = self.passes
        if passes != "all" and (not isinstance(passes, int) or isinstance(passes, bool) or passes < 1):
            raise UserError(f"task {NAME}: passes must be all or a whole number from 1 on, got {passes!r}")
        check_long(NAME, self.long, self.stride)
        at_least_one(NAME, "max_length", self.max_length)

    @property
    def schema(self) -> pa.Schema:
        windows = [("windows", pa.int32())] if self.long == "windows" else []
        return pa.schema([*FIELDS, ("truncated", pa.bool_()), *windows])

    @property
    def expands(self) -> bool:
        return self.long == "windows"

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """A sequence a pass: `targets` are the tokens that it masks."""
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        template = Template.of(tokenizer.backend_tokenizer, pair=False)
        room, stride = text_room(NAME, limit, template.added), None
        if self.long == "windows":
            stride = default_stride(room) if self.stride is None else self.stride
            check_stride(NAME, "stride", stride, room)
        whole = windows(columns["text"], tokenizer, max_length=limit, stride=stride)
        begin, scored = scored_tokens(whole, template.added)
        passes = np.maximum(scored if self.passes == "all" else np.minimum(scored, int(self.passes)), 1)
        of_window = np.repeat(np.arange(len(passes)), passes)
        sizes = lengths(whole).astype(np.int64)
        splits = row_splits(sizes[of_window])
        if splits[-1] > MOST:
            raise UserError(
                f"task {NAME}: {splits[-1]} tokens in all passes over {len(columns)} documents, {MOST} is the most: "
                "fewer passes, or fewer documents at a time"
            )
        flat = whole["input_ids"].combine_chunks().flatten().to_numpy()
        ids = flat[gather_indices(row_splits(sizes)[of_window], sizes[of_window])]
        targets = np.full(len(ids), IGNORED, np.int32)
        # Where each token that is scored stands in the one pass that masks it.
        window, place = np.repeat(np.arange(len(scored)), scored), gather_indices(np.zeros_like(scored), scored)
        sequence = (np.cumsum(passes) - passes)[window] + place % passes[window]
        masked = splits[sequence] + len(template.head) + begin[window] + place
        targets[masked] = ids[masked]
        ids[masked] = tokenizer.mask_token_id
        counts = np.diff(document_splits(whole))
        return pa.table(
            {
                "input_ids": lists(splits, ids),
                "targets": lists(splits, targets),
                "document": whole["document"].take(pa.array(of_window)),
                "truncated": whole["truncated"].take(pa.array(of_window)),
                "windows": pa.array(np.repeat(counts, counts)[of_window], pa.int32()),
            }
        )

    def head(self) -> nn.Module:
        return language_model(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The log-probability of each masked token, `(M)`."""
        return log_probabilities(head, hidden, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        firsts = pa.array(document_splits(encoded)[:-1])
        columns = [*Likelihoods.of(raw, encoded).columns(), encoded["truncated"].take(firsts)]
        if self.long == "windows":
            columns.append(encoded["windows"].take(firsts))
        return pa.table(columns, schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`{"perplexity": …, "log_likelihood": …, "tokens": …}` of each text; transformers has no such pipeline."""
        return likelihood_answers(table)


def scored_tokens(whole: pa.Table, added: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of its text's tokens each window of an encoded table scores: the first of them and how many, `[N]` each.
    Of those that neighbours share, the one scores the first half and the other the second.
    """
    document, tokens = whole["document"].to_numpy(), lengths(whole).astype(np.int64) - added
    follows = document[1:] == document[:-1]
    shared = np.zeros(len(document), np.int64)
    shared[1:][follows] = (tokens - whole["own"].to_numpy())[1:][follows]
    begin = shared // 2
    left_to_next = np.append(shared[1:] - begin[1:], 0)[: len(document)]
    return begin, tokens - begin - left_to_next
