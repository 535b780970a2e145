"""Groups of documents whose texts are the same, or whose signatures agree: all of them, wherever they are read.

A group is a connected component: two documents are in one where a chain of pairs leads from one to the other. What
comes out depends on the set of documents only.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def firsts_of_equal(hashes: NDArray[np.uint64], taken: NDArray[np.bool_]) -> Numbers:
    """`(N)`: of each document, the first with the same hash `(N, 2)`; of one that is not `taken`, itself."""
    first = np.arange(len(hashes))
    numbers = np.flatnonzero(taken)
    order = numbers[np.lexsort((numbers, hashes[numbers, 1], hashes[numbers, 0]))]
    if len(order):
        new = np.ones(len(order), np.bool_)
        new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(1)
        first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def runs(keys: NDArray[np.uint64], numbers: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Documents with a key `(M)` that another one has, together; where each such bucket starts, and ends."""
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(keys)).astype(np.int64)[: len(starts)]
    several = ends - starts > 1
    return numbers, starts[several], ends[several]


def candidates(bands: Iterator[NDArray[np.uint64]], numbers: Numbers) -> Numbers:
    """Which of the documents share a band with another one. `bands`: the keys `(N)` of each."""
    shares: Numbers = np.empty(0, np.int64)
    for keys in bands:
        together, starts, ends = runs(keys[numbers], numbers)
        inside = np.zeros(len(together) + 1, np.int64)
        inside[starts] += 1
        inside[ends] -= 1
        shares = np.union1d(shares, together[np.cumsum(inside[:-1]) > 0])
    return shares


def firsts_of_near(
    bands: Iterator[NDArray[np.uint64]],
    numbers: Numbers,
    signatures: NDArray[np.uint32],
    least: int,
) -> Numbers:
    """`(M)`: of each of the candidates `numbers`, the first of its group. Two are a pair where they share a band and at
    least so many values of their `signatures (M, P)`.
    """
    of = np.arange(len(numbers))  # places in `numbers`, whose order is that of documents
    for keys in bands:
        together, starts, ends = runs(keys[numbers], np.arange(len(numbers)))
        edges = [np.empty((0, 2), np.int64)]
        if len(starts):
            labels = of[together]
            cuts = np.stack([starts, ends], 1).ravel()
            ends_inside = cuts[:-1] if cuts[-1] == len(labels) else cuts
            lowest = np.minimum.reduceat(labels, ends_inside)[::2]
            highest = np.maximum.reduceat(labels, ends_inside)[::2]
            for bucket in np.flatnonzero(lowest != highest).tolist():
                members = together[starts[bucket] : ends[bucket]]
                edges.append(agreeing(members, of[members], signatures, least))
        of = joined(of, np.concatenate(edges))
    return numbers[of]


def agreeing(members: Numbers, labels: Numbers, signatures: NDArray[np.uint32], least: int) -> Numbers:
    """`(E, 2)`: pairs that, with those that share a label, connect what is connected among the members of a bucket."""
    edges: list[tuple[int, int]] = []
    values = signatures[members]
    left = np.arange(len(members))
    while len(left):
        waiting, left = [int(left[0])], left[1:]
        while waiting and len(left):
            one = waiting.pop()
            near = (values[left] == values[one]).sum(1) >= least
            edges += [(int(members[one]), int(members[other])) for other in left[near].tolist()]
            near |= labels[left] == labels[one]
            waiting += left[near].tolist()
            left = left[~near]
    return np.array(edges, np.int64).reshape(-1, 2)


def joined(of: Numbers, edges: Numbers) -> Numbers:
    """The first of each one's group, `of (M)`, when pairs `(E, 2)` join them."""
    if not len(edges):
        return of
    from scipy.sparse import coo_array  # datasketch brings it
    from scipy.sparse.csgraph import connected_components

    size = len(of)
    rows, columns = of[edges[:, 0]], of[edges[:, 1]]
    graph = coo_array((np.ones(len(rows), np.bool_), (rows, columns)), shape=(size, size))
    count, component = connected_components(graph, directed=False)
    first = np.full(count, size)
    np.minimum.at(first, component, np.arange(size))
    result: Numbers = first[component[of]]
    return result
