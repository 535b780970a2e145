"""Measures embedded:help on pages that were held out with all their translations, beside chance and plain methods.

    python pipelines/mini/evaluate_help.py WORK/help.parquet WORK/topics xlmr_ray/assets/help

The plain methods see what the encoder and its head see: n-grams of 2 to 4 characters, by their cosine for translations,
by logistic regression for topics. Prints Markdown, a line a figure.
"""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from train_help import Paragraphs

from xlmr_ray import pipeline

PAIRS = 2000


def ngrams(**values: Any) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), dtype=np.float32, sublinear_tf=True, **values)


def found_among(scores: NDArray[np.floating], count: int) -> float:
    """The share of texts, a row each, whose own translation (at the same place) is among the nearest so many."""
    own = np.diagonal(scores)[:, None]
    return float(((scores > own).sum(1) < count).mean())


def translations(help_pages: Path, folder: Path) -> None:
    table = pq.read_table(help_pages, filters=pc.field("held_out")).to_pydict()
    texts, others, _ = Paragraphs(table).draw(PAIRS, random.Random(5))
    # One translation of each wording: many paragraphs are alike.
    keep = sorted({text: place for place, text in enumerate(others)}.values())
    texts, others = [texts[place] for place in keep], [others[place] for place in keep]
    pipe = pipeline("embedding", folder)
    vectors = [np.array(pipe(some)) for some in (texts, others)]
    plain = ngrams().fit(texts + others)
    by = {
        "embedded:help": vectors[0] @ vectors[1].T,
        "n-grams": (plain.transform(texts) @ plain.transform(others).T).toarray(),
    }
    most = len(others)
    for count in (1, 10):
        figures = " | ".join(f"{100 * found_among(scores, count):.1f}" for scores in by.values())
        print(f"| the translation is among the nearest {count} of {most} | {figures} | {100 * count / most:.2f} |")


def topics(rows: Path, folder: Path) -> None:
    train, test = (pq.read_table(rows / f"{split}.parquet").to_pydict() for split in ("train", "test"))
    answers = pipeline("text-classification", folder / "heads" / "topic", max_length=160)(test["text"])
    own = [answer["label"] for answer in answers]
    plain = ngrams(min_df=3, max_features=200_000)
    model = SGDClassifier(loss="log_loss", alpha=1e-5, random_state=0).fit(
        plain.fit_transform(train["text"]), train["label"]
    )
    theirs = model.predict(plain.transform(test["text"]))
    chance = DummyClassifier().fit(train["text"], train["label"]).predict(test["text"])
    pages = len(set(test["page"]))
    for name, score in (("right", accuracy_score), ("right, programs weighing alike", balanced_accuracy_score)):
        figures = " | ".join(f"{100 * score(test['label'], found):.1f}" for found in (own, theirs, chance))
        print(f"| the program of a passage: {name}, of {len(own)} on {pages} pages | {figures} |")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    translations(Path(sys.argv[1]), Path(sys.argv[3]))
    topics(Path(sys.argv[2]), Path(sys.argv[3]))
