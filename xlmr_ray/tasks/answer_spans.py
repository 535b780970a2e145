"""Logits of starts and ends to answers: the best spans of each window, and of a document's windows together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 20  # pairs of a start and an end whose scores are in memory together


@dataclass(frozen=True)
class AnswerSpan:
    """`text` is the characters `start` to `end` (exclusive) of the context."""

    text: str
    score: float
    start: int
    end: int


NO_ANSWER = AnswerSpan("", 0.0, 0, 0)


def probabilities(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_], splits: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Logits of starts and ends `(T, 2)` to their probabilities among the allowed tokens `(T)` of each of N windows,
    which have the tokens `splits (N + 1)`; zero for the others. Every window has an allowed token.
    """
    counts = np.diff(splits)
    masked = np.where(allowed[:, None], logits.astype(np.float64), -np.inf)
    highest = np.maximum.reduceat(masked, splits[:-1], axis=0)
    exponents = np.exp(masked - np.repeat(highest, counts, axis=0))
    result: NDArray[np.float64] = exponents / np.repeat(np.add.reduceat(exponents, splits[:-1], axis=0), counts, axis=0)
    return result


def best_spans(
    chances: NDArray[np.float64], begin: NDArray[np.int64], count: NDArray[np.int64], max_length: int, top: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """The `top` best spans of up to `max_length` tokens in each of N windows, the best first: first token, last token
    and score, each `(top)` or fewer.

    `chances (T, 2)` are probabilities of starts and ends; window i's context is the `count[i]` tokens from `begin[i]`.
    A span's score is the product of its start's and its end's.
    """
    longest = int(count.max(initial=0))
    max_length = min(max_length, longest)
    for at in range(0, len(begin), max(AT_ONCE // max(longest * max_length, 1), 1)):
        some = slice(at, at + max(AT_ONCE // max(longest * max_length, 1), 1))
        yield from _best_spans(chances, begin[some], count[some], longest, max_length, top)


def _best_spans(
    chances: NDArray[np.float64],
    begin: NDArray[np.int64],
    count: NDArray[np.int64],
    longest: int,
    max_length: int,
    top: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    if not longest:
        nothing = np.zeros(0, np.int64)
        yield from [(nothing, nothing, nothing.astype(np.float64))] * len(begin)
        return
    place = np.arange(longest + max_length - 1)
    inside = place < count[:, None]
    padded = np.where(inside[:, :, None], chances[np.where(inside, begin[:, None] + place, 0)], 0.0)
    ends = np.lib.stride_tricks.sliding_window_view(padded[:, :, 1], max_length, axis=1)
    scores = (padded[:, :longest, None, 0] * ends).reshape(len(begin), -1)
    top = min(top, scores.shape[1])
    # By score, equal ones in their order in the text.
    which = np.sort(np.argpartition(-scores, top - 1, axis=1)[:, :top], axis=1)
    order = np.argsort(-np.take_along_axis(scores, which, axis=1), axis=1, kind="stable")
    which = np.take_along_axis(which, order, axis=1)
    for row, spans in enumerate(which):
        first, last = spans // max_length, spans // max_length + spans % max_length
        real = last < count[row]
        yield begin[row] + first[real], begin[row] + last[real], scores[row, spans[real]]


def merged_answers(
    context: str, spans: Sequence[tuple[list[int], list[int], list[float]]], null_score: float | None, top: int
) -> list[AnswerSpan]:
    """The `top` best answers out of a document's windows, each with spans as starts, ends and scores.

    As in transformers, the scores of equal texts (but for upper and lower case) are added up, wherever they stand; the
    first one is where the answer is. `null_score` is that of an empty answer, None where there must be one of the
    context.
    """
    found: dict[str, list[Any]] = {}
    for starts, ends, scores in spans:
        for start, end, score in zip(starts, ends, scores, strict=True):
            text = context[start:end]
            same = found.setdefault(text.lower(), [text, 0.0, start, end])
            same[1] += score
    answers = [AnswerSpan(*values) for values in found.values()]
    if null_score is not None:
        answers.append(AnswerSpan("", null_score, 0, 0))
    return sorted(answers, key=lambda answer: -answer.score)[:top] or [NO_ANSWER]
