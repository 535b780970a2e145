"""What small vectors cost a search, against sentence-transformers' quantization and search."""

import numpy as np
import pytest
from sentence_transformers.util import semantic_search
from sentence_transformers.util.quantization import quantize_embeddings

from xlmr_ray.bench.small_vectors import losses


def nearest(vectors, k):
    """For each vector the places of the nearest others."""
    hits = semantic_search(vectors, vectors, top_k=k + 1)
    return [[hit["corpus_id"] for hit in row if hit["corpus_id"] != place][:k] for place, row in enumerate(hits)]


def test_shares_of_the_nearest_neighbours_that_are_found():
    random = np.random.default_rng(3)
    vectors = random.normal(size=(60, 32)).astype(np.float32) + random.normal(size=32).astype(np.float32)
    ranges = np.stack([vectors[::4].min(0), vectors[::4].max(0)])
    codes = quantize_embeddings(vectors, "uint8", ranges=ranges).astype(np.float32)
    bits = np.unpackbits(quantize_embeddings(vectors, "ubinary"), axis=1).astype(np.float32) * 2 - 1
    small = {
        "int8, uint8": ranges[0] + (codes + 0.5) * (ranges[1] - ranges[0]) / 255,
        "binary, ubinary": bits,
        "16 dimensions": vectors[:, :16],
    }
    found = {loss.kind: loss for loss in losses({"texts": vectors})}
    assert [found[kind].bytes for kind in small] == [32, 4, 64]
    for kind, kept in small.items():
        got = found[kind].recalls["texts"]
        for place, k in enumerate((1, 10)):
            wanted = nearest(vectors, k)
            overlaps = [len({*a} & {*b}) / k for a, b in zip(wanted, nearest(kept, k), strict=True)]
            assert got.found[place] == pytest.approx(np.mean(overlaps), abs=0.04)  # of equal distances either counts
            covered = [len({*a} & {*b}) / k for a, b in zip(wanted, nearest(kept, 4 * k), strict=True)]
            assert got.rescored[place] == pytest.approx(np.mean(covered), abs=0.04)
    assert found["int8, uint8"].recalls["texts"].rescored[0] > 0.9
    assert found["binary, ubinary"].recalls["texts"].found[1] < 0.8
