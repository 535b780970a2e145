"""Which documents are drawn: as many of each value, however the input is cut, the least sure, the most apart."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from xlmr_ray.train.judge import sample
from xlmr_ray.train.judge.job import SampleSection
from xlmr_ray.train.judge.sample import draw_documents


def tables(rows: int, size: int, **columns: list) -> list[pa.Table]:
    whole = pa.table(
        {
            "text": [f"text {index}" for index in range(rows)],
            "_row": range(rows),
            "_source": ["file"] * rows,
            "_code": [""] * rows,
            **columns,
        }
    )
    return [whole.slice(start, size) for start in range(0, rows, size)]


def drawn(found: list[pa.Table], **section: object) -> pa.Table:
    return draw_documents(iter(found), SampleSection(**section)).rows


def test_every_document_is_as_likely(monkeypatch):
    counts = np.zeros(40)
    for seed in range(100):
        counts[drawn(tables(40, 10), documents=10, seed=seed)["_row"].to_numpy()] += 1
    # 100 draws of a quarter: 25 each, by 4.3 (one standard deviation).
    assert counts.min() > 7
    assert counts.max() < 43
    again = [drawn(tables(40, 10), documents=10, seed=3)["_row"].to_pylist() for _ in range(2)]
    assert again[0] == again[1]


def test_groups_get_as_many_as_they_have():
    """100 of three languages, of which one has 10 rows only: 45 each of the others."""
    languages = ["a"] * 10 + ["b"] * 500 + ["c"] * 490
    order = np.random.default_rng(0).permutation(1000)
    shuffled = [languages[i] for i in order]
    for size in (1000, 37):
        found = drawn(tables(1000, size, lang=shuffled), documents=100, by=["lang"])
        assert Counter(found["lang"].to_pylist()) == {"a": 10, "b": 45, "c": 45}


def test_however_the_input_is_cut_the_same_are_the_least_sure():
    random = np.random.default_rng(1)
    scores = random.random(600).astype(np.float32)
    groups = random.integers(0, 7, 600).astype(str).tolist()
    want = None
    for size in (600, 50, 7):
        found = drawn(tables(600, size, score=scores, lang=groups), documents=35, by=["lang"], strategy="uncertain")
        rows = set(found["_row"].to_pylist())
        assert want is None or rows == want
        want = rows
    assert want is not None
    for group in set(groups):
        own = [i for i in range(600) if groups[i] == group]
        assert want & set(own) == set(sorted(own, key=lambda i: scores[i])[:5])


def test_scores_that_are_missing_come_last():
    scores = pa.array([None, float("nan"), 0.9, 0.1])
    assert drawn(tables(4, 4, score=scores), documents=2, strategy="uncertain")["_row"].to_pylist() == [3, 2]


def test_diverse_documents_are_of_all_kinds(monkeypatch):
    """1,000 vectors in 20 places, half of them in one: k-means++ finds all places, chance does not."""
    random = np.random.default_rng(2)
    places = np.where(random.random(1000) < 0.5, 0, random.integers(0, 20, 1000))
    centres = random.normal(size=(20, 16))
    vectors = pa.array((centres[places] + 0.01 * random.normal(size=(1000, 16))).astype(np.float32).tolist())
    given = tables(1000, 300, embedding=vectors)
    found = drawn(given, documents=20, strategy="diverse")["_row"].to_numpy()
    assert len(set(found)) == 20
    assert len(set(places[found])) >= 18
    by_chance = drawn(given, documents=20)["_row"].to_numpy()
    assert len(set(places[by_chance])) < 16


def test_equal_vectors_make_up_the_number():
    vectors = pa.array([[1.0, 0.0]] * 10)
    assert len(drawn(tables(10, 10, embedding=vectors), documents=4, strategy="diverse")) == 4


@pytest.mark.parametrize("documents", [5, 100])
def test_what_is_held_at_once_is_bounded(monkeypatch, documents):
    most = 0
    plain = sample.evenly

    def seen(rows, count):
        nonlocal most
        most = max(most, len(rows))
        return plain(rows, count)

    monkeypatch.setattr(sample, "evenly", seen)
    found = drawn(tables(5000, 50, lang=[str(i % 50) for i in range(5000)]), documents=documents, by=["lang"])
    assert len(found) == documents
    assert most <= 2 * documents + 50
