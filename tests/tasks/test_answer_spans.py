"""The best spans against all spans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.tasks import answer_spans
from xlmr_ray.tasks.answer_spans import NO_ANSWER, AnswerSpan, best_spans, merged_answers, probabilities


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(0, 2**31),
    st.sampled_from([1, 1 << 20]),
)
def test_all_spans_ranked(windows, max_length, top, seed, at_once):
    """Windows of so many tokens before, in and after their contexts."""
    total = sum(map(sum, windows))
    chances = np.random.default_rng(seed).random((total, 2)) + 1e-3
    count = np.array([context for _, context, _ in windows])
    begin = np.cumsum([0, *[sum(window) for window in windows]])[:-1] + [before for before, _, _ in windows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_spans, "AT_ONCE", at_once)
        got = list(best_spans(chances, begin, count, max_length, top))
    assert len(got) == len(windows)
    for (first, last, score), opens, tokens in zip(got, begin.tolist(), count.tolist(), strict=True):
        spans = [
            (chances[i, 0] * chances[j, 1], i, j)
            for i in range(opens, opens + tokens)
            for j in range(i, min(i + max_length, opens + tokens))
        ]
        wanted = sorted(spans, key=lambda span: -span[0])[:top]
        assert list(zip(score.tolist(), first.tolist(), last.tolist(), strict=True)) == wanted


def test_probabilities_are_among_the_allowed_tokens():
    logits = np.array([[0, 1], [5, 5], [0, 1], [1000, -1000], [2, 2]], np.float32)
    chances = probabilities(logits, np.array([True, False, True, True, False]), np.array([0, 3, 5]))
    assert chances.tolist() == [[0.5, 0.5], [0, 0], [0.5, 0.5], [1, 1], [0, 0]]


def test_equal_texts_are_one_answer():
    spans = [([0, 4], [3, 7], [0.25, 0.125]), ([8], [10], [0.5])]
    assert merged_answers("Yes yes no", spans, None, 5) == [
        AnswerSpan("no", 0.5, 8, 10),
        AnswerSpan("Yes", 0.375, 0, 3),
    ]
    assert merged_answers("Yes yes no", spans, 0.4375, 2) == [
        AnswerSpan("no", 0.5, 8, 10),
        AnswerSpan("", 0.4375, 0, 0),
    ]
    assert merged_answers(" ", [([], [], [])], None, 3) == [NO_ANSWER]
