"""Answers that are spans: entities of a text, as seqeval counts them, and answers to questions, as SQuAD does."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int, str]
ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def span_counts(found: Sequence[Sequence[Span]], wanted: Sequence[Sequence[Span]]) -> NDArray[np.int64]:
    """Of each text, how many spans are right (start, end and kind), found and wanted, `(N, 3)`."""
    rows = [(len(set(f) & set(w)), len(set(f)), len(set(w))) for f, w in zip(found, wanted, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 3)


def f1(counts: NDArray[np.int64]) -> float:
    """Of the counts `(N, 3)` of all texts together; 0 where nothing is found and nothing wanted, as in seqeval."""
    right, found, wanted = counts.sum(axis=0).tolist()
    return 2 * right / (found + wanted) if found + wanted else 0.0


def best_of(score: Callable[[str, str], float], found: str, wanted: Sequence[str]) -> float:
    """The best score of an answer by any of those that are right, as SQuAD counts; none of them is the empty answer."""
    return max(score(found, one) for one in [one for one in wanted if normalized(one)] or [""])


def exact(found: str, wanted: str) -> float:
    """Whether two answers are the same as SQuAD compares them."""
    return float(normalized(found) == normalized(wanted))


def normalized(answer: str) -> str:
    """An answer as SQuAD's script compares it: small letters, no punctuation, no English articles, single spaces."""
    plain = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", plain).split())


def word_f1(found: str, wanted: str) -> float:
    """The F1 of the words that two answers share; of empty ones 1 where both are."""
    one, other = normalized(found).split(), normalized(wanted).split()
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))
