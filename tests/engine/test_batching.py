"""Batches: every sequence once, within the budget, longest first."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xlmr_ray.engine.batching import longest_first, next_batch


def batches(lengths, budget):
    """All sequences, as the engine takes them."""
    order = longest_first(lengths)
    while len(order):
        batch = next_batch(lengths, order, budget)
        yield batch
        order = order[len(batch) :]


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 2000))
def test_every_sequence_is_in_one_batch_within_the_budget(lengths, budget):
    lengths = np.array(lengths, np.int64)
    made = list(batches(lengths, budget))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or lengths[batch].sum() <= budget
    if made:
        order = np.concatenate(made)
        assert (np.diff(lengths[order]) <= 0).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=100), st.integers(50, 300))
def test_batches_are_full(lengths, budget):
    """A batch ends only because the next sequence does not fit."""
    lengths = np.array(lengths, np.int64)
    made = list(batches(lengths, budget))
    for batch, following in pairwise(made):
        assert lengths[batch].sum() + lengths[following[0]] > budget
