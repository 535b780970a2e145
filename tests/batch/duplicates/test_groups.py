import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.batch.duplicates.groups import candidates, firsts_of_equal, firsts_of_near
from xlmr_ray.batch.duplicates.sketch import band_keys


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.booleans()), max_size=40))
def test_the_first_of_equal_hashes(rows):
    hashes = np.array([row[:2] for row in rows], np.uint64).reshape(-1, 2)
    taken = np.array([row[2] for row in rows], np.bool_)
    seen: dict[tuple[int, int], int] = {}
    wanted = [seen.setdefault(row[:2], at) if row[2] else at for at, row in enumerate(rows)]
    assert firsts_of_equal(hashes, taken).tolist() == wanted


def components(signatures, bands, rows, least) -> list[int]:
    graph = nx.empty_graph(len(signatures))
    for one in range(len(signatures)):
        for other in range(one):
            same = signatures[one] == signatures[other]
            if same.sum() >= least and same[: bands * rows].reshape(bands, rows).all(1).any():
                graph.add_edge(one, other)
    first = {place: min(part) for part in nx.connected_components(graph) for place in part}
    return [first[place] for place in range(len(signatures))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([5, 8, 10, 12]))
def test_groups_are_the_components_of_all_pairs(seed, size, least):
    """Documents that differ from one of a few in some values, so that there are chains, and buckets of many."""
    drawn = np.random.default_rng(seed)
    base = drawn.integers(0, 2**32, (4, 12)).astype(np.uint32)
    signatures = base[drawn.integers(0, 4, size)]
    changed = drawn.random((size, 12)) < 0.25
    signatures = np.where(changed, drawn.integers(0, 3, (size, 12)), signatures).astype(np.uint32)
    signatures = np.pad(signatures, ((0, 0), (0, 244)))[:, :12]
    keys = list(band_keys(signatures, 4, 3))
    some = candidates(iter(keys), np.arange(size))
    first = np.arange(size)
    first[some] = firsts_of_near(iter(keys), some, signatures[some], least)
    assert first.tolist() == components(signatures, 4, 3, least)


@pytest.mark.parametrize("similar", [True, False])
def test_a_bucket_of_very_many(similar):
    """Of equal signatures each is compared once; of those that share a band for nothing, none is joined."""
    drawn = np.random.default_rng(1)
    signatures = drawn.integers(0, 2**32, (1 if similar else 500, 256)).astype(np.uint32)
    signatures = np.repeat(signatures, 20_000, axis=0)[:20_000] if similar else signatures
    signatures[:, :11] = 7
    keys = list(band_keys(signatures, 23, 11))
    numbers = np.arange(len(signatures))
    assert len(candidates(iter(keys), numbers)) == len(signatures)
    first = firsts_of_near(iter(keys), numbers, signatures, 205)
    assert first.tolist() == ([0] * len(numbers) if similar else numbers.tolist())
