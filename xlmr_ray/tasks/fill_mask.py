"""`fill-mask`: the likeliest tokens for each mask of a text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.tasks.encoded import length_limit, lengths
from xlmr_ray.tasks.likelihood import language_model
from xlmr_ray.tasks.long_documents import check_long, length_fields
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked_options
from xlmr_ray.tasks.unfit import NO_MASK, UnfitRows
from xlmr_ray.tasks.windows import (
    check_stride,
    default_stride,
    document_splits,
    joined_parts,
    lists,
    summed,
    window_spans,
)
from xlmr_ray.tokenizer.ragged import Ragged, Template, Truncation
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

log = logging.getLogger(__name__)

NAME = "fill-mask"
# Masks whose logits are there at a time: 64 MB a copy in fp32 for 250,002 entries.
CHUNK = 64
FILL = pa.struct([("token", pa.int32()), ("text", pa.string()), ("score", pa.float32())])


@dataclass(frozen=True, kw_only=True)
class FillMask(EncoderTask):
    """The most likely tokens for each mask. Scores are probabilities over the whole vocabulary, each mask by itself,
    also where a text has several.

    Options:
    - `top_k`: fills of a mask (default: 5).
    - `targets`: a word or a list of words; only these are scored. Of a word of several tokens the first is scored, with
      a warning (default: the whole vocabulary).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged (masks behind the cut get no fills, and a text that has none left is an
      error), or read in `windows`: each mask is filled in the one that has the most text around it, and windows in
      which no mask is filled are not computed (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Output: `fills`, for each mask in the text's order its tokens, best first; `tokens`, `truncated`, and `windows`
    where texts are read in windows, both of what is computed.
    """

    roles = ("text",)
    unit = "target"
    reads = "target"
    request_bounds: ClassVar[Mapping[str, int | str]] = {"top_k": 1000}
    unwraps_lists_of_one = True
    architectures = ("ForMaskedLM",)

    top_k: int = 5
    targets: str | Sequence[str] | None = None
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: Path = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> FillMask:
        return cls(**checked_options(cls, NAME, options), config=config, folder=folder)

    def __post_init__(self) -> None:
        if self.top_k is None:
            raise UserError(f"task {NAME}: top_k must be a whole number from 1 on, got None")
        at_least_one(NAME, "top_k", self.top_k)
        at_least_one(NAME, "max_length", self.max_length)
        check_long(NAME, self.long, self.stride)
        words = [self.targets] if isinstance(self.targets, str) else self.targets
        if words is None:
            return
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise UserError(f"task {NAME}: targets must be a word or a list of words, got {self.targets!r}")

    def read_with(self, tokenizer: XLMRobertaTokenizer) -> None:
        """Finds the targets' tokens. Raises UserError where there are none."""
        vars(self).pop("target_ids", None)
        vars(self)["tokenizer"] = tokenizer
        if self.targets is not None and not self.target_ids:
            count = 1 if isinstance(self.targets, str) else len(self.targets)
            raise UserError(f"task {NAME}: targets: none of the {count} gives a token")

    @cached_property
    def tokenizer(self) -> XLMRobertaTokenizer:
        """What the task was read with; the folder's where another process prepares."""
        return tokenizer_of(self.folder)

    @cached_property
    def target_ids(self) -> tuple[int, ...]:
        """The tokens to score, ascending; () for the whole vocabulary."""
        words = [self.targets] if isinstance(self.targets, str) else self.targets or ()
        vocabulary = self.tokenizer.get_vocab() if words else {}
        found = set()
        for index, word in enumerate(words):
            token = vocabulary.get(word)
            if token is None:
                pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
                if not pieces:
                    log.warning("fill-mask: targets.%d gives no token: left out", index)
                    continue
                token = pieces[0]
                log.warning("fill-mask: targets.%d is not one token: its first piece is scored", index)
            if token >= self.config.vocab_size:
                raise UserError(
                    f"task {NAME}: targets.{index} is token {token}, the model has {self.config.vocab_size}"
                )
            found.add(token)
        return tuple(sorted(found))

    def example(self, mask_token: str) -> dict[str, Any]:
        return {"text": f"a {mask_token}"}

    @property
    def result_width(self) -> int:
        return 2 * self.count

    @property
    def count(self) -> int:
        """Fills a mask."""
        return min(self.top_k, len(self.target_ids) or self.config.vocab_size)

    @property
    def schema(self) -> pa.Schema:
        """`fills`: for each mask, in the text's order, its tokens, best first. `tokens` and `windows` are those that
        are computed.
        """
        return pa.schema([("fills", pa.list_(pa.list_(FILL))), *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        if "tokenizer" not in vars(self):
            self.read_with(tokenizer)
        texts = self.whole(columns, tokenizer)
        splits = texts.row_splits
        at = np.flatnonzero(texts.input_ids == tokenizer.mask_token_id)
        owner = np.searchsorted(splits, at, side="right") - 1
        without = np.flatnonzero(np.bincount(owner, minlength=len(texts)) == 0).tolist()
        if without:
            kept = [f" among its first {texts.lengths[p]} tokens" * bool(texts.truncated[p]) for p in without]
            messages = [f"the text has no {tokenizer.mask_token}{where}" for where in kept]
            raise UnfitRows({p: (NO_MASK, message) for p, message in zip(without, messages, strict=True)})
        if self.long == "windows":
            return self.windows_of(texts, at, owner, tokenizer)
        targets = np.full(len(texts.input_ids), IGNORED, np.int32)
        targets[at] = 0
        return pa.table(
            {
                "input_ids": lists(splits, texts.input_ids),
                "targets": lists(splits, targets),
                "truncated": pa.array(texts.truncated),
            }
        )

    def whole(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> Ragged:
        """The texts' tokens, cut unless they go by windows."""
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        how: Truncation = "do_not_truncate" if self.long == "windows" else "longest_first"
        return tokenizer.encode_ragged(columns["text"].combine_chunks(), max_length=limit, truncation=how)

    def windows_of(
        self,
        texts: Ragged,
        at: NDArray[np.int64],
        owner: NDArray[np.int64],
        tokenizer: XLMRobertaTokenizer,
    ) -> pa.Table:
        """The windows that some mask, at the tokens `at` of the texts `owner`, has the most text around it in."""
        template = Template.of(tokenizer.backend_tokenizer, pair=False)
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        room = limit - template.added
        stride = min(default_stride(limit), room - 1) if self.stride is None else self.stride
        check_stride(NAME, "stride", stride, room)
        sizes = texts.lengths - template.added
        document, first, last = window_spans(sizes, room, stride, left=tokenizer.truncation_side == "left")
        begin = texts.row_splits[:-1] + len(template.head)
        # Where a window begins or ends with its text, nothing is missing on that side.
        whole = int(sizes.max(initial=0))
        low, high = np.where(first == 0, -whole, first), np.where(last == sizes[document], 2 * whole, last)
        opens = np.searchsorted(document, np.arange(len(texts) + 1))
        best = np.empty_like(at)
        for mask, (position, text) in enumerate(zip((at - begin[owner]).tolist(), owner.tolist(), strict=True)):
            own = slice(opens[text], opens[text + 1])
            best[mask] = opens[text] + np.minimum(position - low[own], high[own] - 1 - position).argmax()
        chosen = np.unique(best)
        text, first, size = document[chosen], first[chosen], (last - first)[chosen]
        ids, splits, _ = joined_parts(
            [
                (np.array(template.head, np.int32), 0, len(template.head)),
                (texts.input_ids, begin[text] + first, size),
                (np.array(template.tail, np.int32), 0, len(template.tail)),
            ],
            len(chosen),
        )
        out = np.full(len(ids), IGNORED, np.int32)
        window = np.searchsorted(chosen, best)
        out[splits[window] + len(template.head) + at - begin[owner] - first[window]] = 0
        return pa.table(
            {
                "input_ids": lists(splits, ids),
                "targets": lists(splits, out),
                "document": pa.array(text, pa.int32()),
                "truncated": pa.array(texts.truncated[text]),
            }
        )

    def head(self) -> nn.Module:
        return language_model(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Scores and tokens of each mask's fills, best first: `(M, 2 * count)`. Tokens are below 2^24, so fp32 holds
        them.
        """
        import torch

        from xlmr_ray.model.batch_invariance import pad_rows

        wanted = torch.tensor(self.target_ids, dtype=torch.int64)
        if hidden.device.type == "cuda":  # a copy out of other memory than pinned would wait for the device
            wanted = wanted.pin_memory().to(hidden.device, non_blocking=True)
        out = []
        for states in torch.split(batch.at_targets(hidden), CHUNK):
            logits = head.get_submodule("lm_head")(pad_rows(states))[: len(states)]
            scores = logits.float().softmax(dim=-1)
            best, tokens = (scores[:, wanted] if self.target_ids else scores).topk(self.count)
            out.append(torch.cat([best, (wanted[tokens] if self.target_ids else tokens).float()], dim=1))
        return torch.cat(out)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        scores, tokens = raw[:, : self.count], raw[:, self.count :].astype(np.int32)
        different, inverse = np.unique(tokens, return_inverse=True)
        texts = pa.array([self.tokenizer.decode([token]) for token in different.tolist()], pa.string())
        values = [pa.array(tokens.ravel()), texts.take(pa.array(inverse.ravel())), pa.array(scores.ravel())]
        each = np.arange(len(raw) + 1, dtype=np.int32) * self.count
        masks = pa.ListArray.from_arrays(pa.array(each), pa.StructArray.from_arrays(values, fields=list(FILL)))
        targets = encoded["targets"].combine_chunks()
        ends = np.concatenate([[0], np.cumsum(targets.flatten().to_numpy() != IGNORED)])
        rows = document_splits(encoded)
        offsets = targets.offsets.to_numpy()
        fills = pa.ListArray.from_arrays(pa.array(ends[(offsets - offsets[0])[rows]], pa.int32()), masks)
        counted = [
            pa.array(summed(lengths(encoded), rows), pa.int32()),
            encoded["truncated"].take(pa.array(rows[:-1])),
            *([pa.array(np.diff(rows), pa.int32())] if self.long == "windows" else []),
        ]
        return pa.table([fills, *counted], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """As in transformers: fills of the one mask, or a list of them for each of several. `sequence`, the text with
        the fill in it, is left out where the texts' `columns` are not given.
        """
        texts = None if columns is None else self.whole(columns, self.tokenizer)
        out: list[Any] = []
        for document, masks in enumerate(table["fills"].to_pylist()):
            answer = [[{"score": f["score"], "token": f["token"], "token_str": f["text"]} for f in m] for m in masks]
            if texts is not None:
                start, end = texts.row_splits[document : document + 2]
                self.add_sequences(answer, texts.input_ids[start:end].tolist())
            out.append(answer[0] if len(answer) == 1 else answer)
        return out

    def add_sequences(self, answer: list[list[dict[str, Any]]], ids: list[int]) -> None:
        """The text of the ids with each fill put in. Special tokens are left in where there are several masks, so that
        the other masks are to be seen.
        """
        masks = [at for at, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        for at, fills in zip(masks, answer, strict=True):
            for fill in fills:
                filled = [*ids[:at], fill["token"], *ids[at + 1 :]]
                kept = [token for token in filled if token != self.tokenizer.pad_token_id]
                fill["sequence"] = self.tokenizer.decode(kept, skip_special_tokens=len(masks) == 1)


@lru_cache(maxsize=2)
def tokenizer_of(folder: Path) -> XLMRobertaTokenizer:
    """Loaded once for all calls, each of which may bind the task anew."""
    return XLMRobertaTokenizer.from_pretrained(folder)
