"""Documents whose embeddings are near each other, compared with all of their block: one language, or a part of it.

A language of more than `BLOCK_ROWS` documents is cut by spherical k-means on a sample, as SemDeDup does (Abbas et al.
2023): neighbours on two sides of a border are missed. Of two that are near, the later one goes if the earlier one
stays; so each that goes is near one that stays, which a chain of neighbours would not promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.batch.duplicates.documents import PAIRS

BLOCK_ROWS = 20_000  # 200 million products of vectors
SAMPLE = 20_000  # of a language, for the centres
TILE = 256  # rows that are compared at once with all before them
ROUNDING = 1e-6  # of a cosine in float32: equal vectors have 1
ROUNDS = 10


@dataclass(frozen=True)
class Blocks:
    """By language, the number of its first block, and the centres `(blocks, width)` that cut it, where it is cut."""

    first: Mapping[str, int]
    centres: Mapping[str, NDArray[np.float32]]

    @property
    def count(self) -> int:
        return len(self.first) + sum(len(middles) - 1 for middles in self.centres.values())

    def of(self, language: str, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """The block of each row; in float64, lest it depend on which rows come together."""
        first = self.first[language]
        if language not in self.centres:
            return np.full(len(rows), first)
        middles = self.centres[language].astype(np.float64)
        nearest: NDArray[np.int64] = (rows.astype(np.float64) @ middles.T).round(9).argmax(1) + first
        return nearest


def of_length_one(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """`(N, width)`, of length 1; zeros where there is none."""
    whole = column.combine_chunks()
    if not len(whole):
        return np.empty((0, 0), np.float32)
    flat = getattr(whole, "storage", whole).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    found: NDArray[np.float32] = flat.reshape(len(whole), -1)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.nan_to_num(found / np.maximum(lengths, 1e-12), posinf=0.0, neginf=0.0)
    return unit


def lot(source: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in [0, 1) for each document that is the same whoever asks: who is below a bound is a sample."""
    mixed = (rows.astype(np.uint64) + np.uint64(crc32(source.encode()))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    drawn: NDArray[np.float64] = (mixed ^ (mixed >> np.uint64(29))).astype(np.float64) / 2.0**64
    return drawn


def centres(sample: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Directions `(count, width)` of spherical k-means, the same for the same sample."""
    generator = np.random.default_rng(7)
    found = sample[generator.choice(len(sample), min(count, len(sample)), replace=False)]
    for _ in range(ROUNDS):
        nearest = (sample @ found.T).argmax(1)
        sums = np.zeros_like(found)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), found)
    return found


def near_pairs(block: pa.Table, threshold: float) -> pa.Table:
    """`PAIRS` of a block: its rows that have a cosine of at least the threshold with an earlier one that stays, each
    with the nearest of these. `block` has `source, row, language, vector`.
    """
    block = block.sort_by([("source", "ascending"), ("row", "ascending")])
    rows = of_length_one(block["vector"])
    kept: list[int] = []
    held = np.empty_like(rows)  # those that stay
    gone: list[int] = []
    of: list[int] = []
    similarity: list[float] = []
    for start in range(0, len(rows), TILE):
        tile = rows[start : start + TILE]
        before, inside = held[: len(kept)] @ tile.T, tile @ tile.T
        stays: list[int] = []
        for place in range(len(tile)):
            best, value = -1, -np.inf
            if len(kept):
                at = int(before[:, place].argmax())
                best, value = kept[at], before[at, place]
            if stays:
                at = int(inside[stays, place].argmax())
                if inside[stays[at], place] > value:
                    best, value = start + stays[at], inside[stays[at], place]
            if value >= threshold - ROUNDING:
                gone.append(start + place)
                of.append(best)
                similarity.append(float(value))
            else:
                stays.append(place)
        held[len(kept) : len(kept) + len(stays)] = tile[stays]
        kept += [start + place for place in stays]
    left, right = block.take(pa.array(gone, pa.int64())), block.take(pa.array(of, pa.int64()))
    columns = [
        *(left[name].combine_chunks() for name in ("source", "row", "language")),
        pa.array(["embedding"] * len(gone), pa.string()),
        pa.array(similarity, pa.float32()),
        *(right[name].combine_chunks() for name in ("source", "row")),
    ]
    return pa.table(columns, schema=PAIRS)
