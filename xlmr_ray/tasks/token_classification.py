"""`token-classification` (`ner`): a label a token, or the entities that tokens make up, and where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import length_limit, lengths
from xlmr_ray.tasks.softmax import softmax
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.windows import (
    check_stride,
    default_stride,
    document_splits,
    document_tokens,
    first_rows,
    flat,
    gather_indices,
    row_splits,
    windows,
)
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "token-classification"
WORDS = ("first", "average", "max")  # the strategies that give a word one label
SPACE = "▁"  # how pieces of the vocabulary write a space


@dataclass(frozen=True, kw_only=True)
class TokenClassification(EncoderTask):
    """A label a token, or the entities that tokens make up.

    Options:
    - `aggregation_strategy`: `none`, each token; `simple`, neighbours of one kind are an entity; `first`, `average`,
      `max`, the same of whole words, labelled by their first token, by the mean of their tokens' scores, by the token
      with the best score (default: none).
    - `ignore_labels`: labels of entities that are left out (default: [O]).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are read in `windows`, so that nothing is lost, or `cut` and flagged (default: windows).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Where a text has several windows, of entities that overlap the longest is kept, of equally long ones the one with
    the best score, as in transformers; a token's label (`none`) is that of the window which has more text around it.
    Words are found as transformers finds them: one ends where the next token begins at or behind a space.

    Output: `entities: list<struct<label, score, start, end, text, word>>`, where `start` and `end` are characters of
    the text, `text` is what is there, `word` the tokens as text; for `none` with the token's `index` in its text.
    `tokens` counts those that windows share once; `truncated`.
    """

    roles = ("text",)
    unit = "token"
    architectures = ("ForTokenClassification",)

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] | None = None
    long: str = "windows"
    stride: int | None = None
    max_length: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> TokenClassification:
        return cls(**checked_options(cls, NAME, options), config=config)

    def __post_init__(self) -> None:
        check_choice(NAME, "aggregation_strategy", self.aggregation_strategy, ("none", "simple", *WORDS))
        check_choice(NAME, "long", self.long, ("windows", "cut"))
        at_least_one(NAME, "max_length", self.max_length)
        given = self.ignore_labels
        if given is not None and (not isinstance(given, list | tuple) or not all(isinstance(x, str) for x in given)):
            raise UserError(f"task {NAME}: ignore_labels must be a list of labels, got {given!r}")
        if self.stride is not None and self.long == "cut":
            raise UserError(f"task {NAME}: stride is for windows, and texts are cut (long: cut)")

    @property
    def ignored(self) -> Sequence[str]:
        return ("O",) if self.ignore_labels is None else self.ignore_labels

    @property
    def entity(self) -> pa.StructType:
        fields = [("label", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
        fields += [("text", pa.string()), ("word", pa.string())]
        return pa.struct([*fields, ("index", pa.int32())] if self.aggregation_strategy == "none" else fields)

    @property
    def output_labels(self) -> Sequence[str]:
        return self.config.labels

    @property
    def result_width(self) -> int:
        return len(self.config.labels)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("entities", pa.list_(self.entity)), ("tokens", pa.int32()), ("truncated", pa.bool_())])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """An encoded table of `windows`, with the `text` in the first row of each document, the tokens' `pieces`, and
        where words are labelled which tokens go on a word (`inside`).
        """
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        stride = None
        if self.long == "windows":
            stride = default_stride(limit) if self.stride is None else self.stride
            check_stride(NAME, "stride", stride, limit - tokenizer.num_special_tokens_to_add())
        texts = columns["text"].combine_chunks()
        encoded = windows(columns["text"], tokenizer, max_length=limit, stride=stride, offsets=True)
        ids, start, end = (flat(encoded[name]).to_numpy() for name in ("input_ids", "start", "end"))
        document = np.repeat(encoded["document"].to_numpy(), lengths(encoded))
        unknown = (ids == tokenizer.unk_token_id) & (start >= 0)
        splits = encoded["input_ids"].combine_chunks().offsets
        pieces = token_pieces(tokenizer, ids, unknown, texts, document, start, end)
        encoded = encoded.append_column("pieces", pa.ListArray.from_arrays(splits, pieces))
        encoded = encoded.append_column("text", first_rows(texts, encoded))
        if self.aggregation_strategy in WORDS:
            inside = pa.array(inside_words(texts, document, start) & ~unknown)
            encoded = encoded.append_column("inside", pa.ListArray.from_arrays(splits, inside))
        return encoded

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.model.meta_device import shapes_only

        with shapes_only():
            return nn.ModuleDict({"classifier": nn.Linear(self.config.hidden_size, self.config.num_labels)})

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Logits `(T, labels)`."""
        logits: Tensor = head.get_submodule("classifier")(hidden)
        return logits[: batch.tokens]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        splits = document_splits(encoded)
        found = self.entities(raw, encoded, np.repeat(np.arange(len(splits) - 1), np.diff(splits)))
        counts = np.bincount(found.document, minlength=len(splits) - 1)
        texts = encoded["text"].take(pa.array(splits[:-1])).to_pylist()
        places = zip(found.document.tolist(), found.start.tolist(), found.end.tolist(), strict=True)
        values = [
            found.label,
            pa.array(found.score, pa.float32()),
            pa.array(found.start, pa.int32()),
            pa.array(found.end, pa.int32()),
            pa.array([texts[document][start:end] for document, start, end in places], pa.string()),
            found.word,
        ]
        if self.aggregation_strategy == "none":
            values.append(pa.array(found.index, pa.int32()))
        entities = pa.StructArray.from_arrays(values, fields=list(self.entity))
        return pa.table(
            [
                pa.ListArray.from_arrays(pa.array(row_splits(counts), pa.int32()), entities),
                pa.array(document_tokens(encoded)),
                encoded["truncated"].take(pa.array(splits[:-1])),
            ],
            schema=self.schema,
        )

    def entities(self, raw: NDArray[np.float32], encoded: pa.Table, document: NDArray[np.int64]) -> Entities:
        """The entities of windows that are of these documents `(N)`."""
        window = np.repeat(np.arange(encoded.num_rows), lengths(encoded))
        start = flat(encoded["start"]).to_numpy()
        is_text = start >= 0
        if self.aggregation_strategy == "none":
            is_text &= counted_once(encoded, document, window, is_text)
        tokens = np.flatnonzero(is_text)
        window, start, end = window[tokens], start[tokens], flat(encoded["end"]).to_numpy()[tokens]
        scores = softmax(raw[tokens])
        # Units: tokens or words, each with a label and a score, of the tokens `first` to `last`.
        if self.aggregation_strategy in WORDS:
            inside = flat(encoded["inside"]).to_numpy(zero_copy_only=False)[tokens]
            opens = ~inside | value_changes(window)
            scores = self.word_scores(scores, np.flatnonzero(opens))
        else:
            opens = np.ones(len(tokens), np.bool_)
        first = np.flatnonzero(opens)
        label, score = scores.argmax(axis=1), scores.max(axis=1, initial=0)
        names = np.array(self.config.labels, object)
        if self.aggregation_strategy != "none":
            begins, tags, names = read_labels(self.config.labels)
            heads = np.flatnonzero(value_changes(window[first]) | begins[label] | value_changes(tags[label]))
            score = np.add.reduceat(score.astype(np.float64), heads) / np.diff(np.append(heads, len(first)))
            first, label = first[heads], label[heads]
        last = np.append(first[1:], len(tokens))[: len(first)] - 1
        kept = np.flatnonzero(~np.isin(names[label], list(self.ignored)))
        owner = document[window[first]]
        if self.aggregation_strategy != "none":
            several = np.bincount(document, minlength=1) > 1
            kept = without_overlaps(kept, owner, several, start[first], end[last], score)
        first, last, owner = first[kept], last[kept], owner[kept]
        within = gather_indices(first, last - first + 1)
        pieces = flat(encoded["pieces"]).take(pa.array(tokens[within]))
        if self.aggregation_strategy != "none":
            # As transformers joins them: the words of the strategies about words without a space between them.
            opens = (
                opens[within]
                if self.aggregation_strategy in WORDS
                else value_changes(np.repeat(first, last - first + 1))
            )
            inner = pc.replace_substring(pieces, SPACE, " ")
            pieces = pc.if_else(pa.array(opens), pc.replace_substring(pieces, SPACE, ""), inner)
        word = pa.ListArray.from_arrays(pa.array(row_splits(last - first + 1), pa.int32()), pieces)
        return Entities(
            document=owner,
            label=pa.array(names[label[kept]], pa.string()),
            score=score[kept],
            start=start[first],
            end=end[last],
            word=pc.binary_join(word, ""),
            index=places_in_documents(encoded, document)[tokens[first]],
        )

    def word_scores(self, scores: NDArray[np.float32], first: NDArray[np.int64]) -> NDArray[np.float32]:
        """Tokens' scores `(T, labels)` to scores `(W, labels)` of the words that begin at the tokens `first (W)`."""
        if self.aggregation_strategy == "first":
            return scores[first]
        counts = np.diff(np.append(first, len(scores)))
        if self.aggregation_strategy == "average":
            return (np.add.reduceat(scores, first, axis=0) / counts[:, None]).astype(np.float32)
        best = scores.max(axis=1, initial=0)
        is_best = best == np.repeat(np.maximum.reduceat(best, first), counts)
        surest = np.minimum.reduceat(np.where(is_best, np.arange(len(best)), len(best)), first)
        return scores[surest]

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        name = "entity" if self.aggregation_strategy == "none" else "entity_group"
        others = ["score", *(["index"] if name == "entity" else []), "word", "start", "end"]
        return [
            [{name: entity["label"], **{other: entity[other] for other in others}} for entity in entities]
            for entities in table["entities"].to_pylist()
        ]


@dataclass(frozen=True, eq=False)
class Entities:
    """E entities in the order of their documents, every field `(E)`."""

    document: NDArray[np.int64]
    label: pa.Array
    score: NDArray[np.floating]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    word: pa.Array
    index: NDArray[np.int64]


def token_pieces(
    tokenizer: XLMRobertaTokenizer,
    ids: NDArray[np.int32],
    unknown: NDArray[np.bool_],
    texts: pa.StringArray,
    document: NDArray[np.int32],
    start: NDArray[np.int32],
    end: NDArray[np.int32],
) -> pa.StringArray:
    """The vocabulary's piece of each token `(T)`; for unknown ones, what stands in the text."""
    distinct, which = np.unique(ids, return_inverse=True)
    pieces = [str(piece) for piece in tokenizer.convert_ids_to_tokens(distinct.tolist())]
    places = np.flatnonzero(unknown)
    which[places] = len(pieces) + np.arange(len(places))
    of = -1
    text = ""
    for owner, begin, stop in zip(document[places].tolist(), start[places], end[places], strict=True):
        if owner != of:
            of, text = owner, texts[owner].as_py()
        pieces.append(text[begin:stop])
    return pa.array(pieces, pa.string()).take(pa.array(which))


def inside_words(texts: pa.StringArray, document: NDArray[np.int32], start: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which tokens `(T)` go on a word: neither their first character nor the one before it is a space."""
    chars = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le"), "<u4")
    splits = row_splits(pc.utf8_length(texts).to_numpy())
    blank = np.append(chars == ord(" "), True)
    here = splits[document] + start
    at = blank[here] & (here < splits[document + 1])
    result: NDArray[np.bool_] = (start > 0) & ~blank[np.maximum(here, 1) - 1] & ~at
    return result


def counted_once(
    encoded: pa.Table, document: NDArray[np.int64], window: NDArray[np.int64], is_text: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which tokens `(T)` stand for themselves: of those that two windows share, the first half is the earlier one's."""
    text = np.bincount(window[is_text], minlength=encoded.num_rows)
    shared = np.where(value_changes(document), 0, text - encoded["own"].to_numpy())
    following = np.append(shared[1:], 0)
    within = np.cumsum(is_text) - 1
    within = within - (np.cumsum(text) - text)[window]
    result: NDArray[np.bool_] = (within >= (shared - shared // 2)[window]) & (within < (text - following // 2)[window])
    return result


def places_in_documents(encoded: pa.Table, document: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index `(T)` of each token in its document, as if that were one sequence."""
    length, own = lengths(encoded).astype(np.int64), encoded["own"].to_numpy().astype(np.int64)
    opens = value_changes(document)
    again = length - own  # special tokens and shared ones; none in a first window
    before = np.cumsum(own) - own
    of_document = np.maximum.accumulate(np.where(opens, before, 0))
    base = np.where(opens, 0, before - of_document - again)
    return np.repeat(base - row_splits(length)[:-1], length) + np.arange(length.sum())


def without_overlaps(
    kept: NDArray[np.int64],
    owner: NDArray[np.int64],
    several: NDArray[np.bool_],
    start: NDArray[np.int32],
    end: NDArray[np.int32],
    score: NDArray[np.floating],
) -> NDArray[np.int64]:
    """Of the entities `kept`, in the documents with `several` windows, the longest, else surest, of those that overlap;
    in the order of their documents, there also in that of their starts.
    """
    splits = np.append(np.flatnonzero(value_changes(owner[kept])), len(kept))
    chosen = []
    for mine in np.split(kept, splits[1:-1]):
        if len(mine) and several[owner[mine[0]]]:
            mine = np.array(resolved(mine[np.argsort(start[mine], kind="stable")].tolist(), start, end, score))
        chosen.append(mine)
    return np.concatenate(chosen)


def resolved(
    entities: list[int], start: NDArray[np.int32], end: NDArray[np.int32], score: NDArray[np.floating]
) -> list[int]:
    """One of each chain of entities, sorted by their starts, that begin within the best of the chain so far."""
    result = entities[:1]
    for entity in entities[1:]:
        best = result[-1]
        if not start[best] <= start[entity] < end[best]:
            result.append(entity)
        elif (end[entity] - start[entity], score[entity]) > (end[best] - start[best], score[best]):
            result[-1] = entity
    return result


def read_labels(labels: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.object_]]:
    """Of each label: whether it begins an entity (`B-`), the number of its kind, the name of an entity that it begins.

    The kind is what follows `B-` or `I-`, of other labels all of it; the name is what follows the first hyphen.
    """
    kinds = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    begins = np.array([label.startswith("B-") for label in labels], np.bool_)
    numbers = np.array([kinds.index(kind) for kind in kinds], np.int64)
    return begins, numbers, np.array([label.split("-", 1)[-1] for label in labels], object)


def value_changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value is another one than that before it; the first one is."""
    result = np.ones(len(values), np.bool_)
    result[1:] = values[1:] != values[:-1]
    return result
