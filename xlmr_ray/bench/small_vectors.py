"""What small vectors cost a search: how many of the nearest neighbours by float32 are found with int8, bits, or fewer
dimensions, at once and after a second scoring.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from xlmr_ray.tasks.vector_precision import Ranges, stored

NEAREST = (1, 10)
CANDIDATES = 4  # times as many as are asked for are scored again in float32
SAMPLED = 4  # one vector in so many gives the ranges


@dataclass(frozen=True)
class Recall:
    """Shares of the nearest `NEAREST` by float32, each text of a set looking for the others: found by small vectors
    only, and among their first candidates, `rescored`.
    """

    found: tuple[float, ...]
    rescored: tuple[float, ...]


@dataclass(frozen=True)
class Loss:
    """Of vectors of a kind: the bytes of one, and the recall in each set of texts by its name."""

    kind: str
    bytes: int
    recalls: Mapping[str, Recall]


def losses(sets: Mapping[str, NDArray[np.float32]]) -> list[Loss]:
    """Of the vectors `(N, width)` of some sets of texts."""
    width = next(iter(sets.values())).shape[1]
    made = {
        "int8, uint8": (width, {name: as_bytes(vectors) for name, vectors in sets.items()}),
        "binary, ubinary": (-(-width // 8), {name: as_signs(vectors) for name, vectors in sets.items()}),
        **{
            f"{part} dimensions": (4 * part, {name: vectors[:, :part] for name, vectors in sets.items()})
            for part in (width // 2, width // 4)
        },
    }
    half = width // 2
    made[f"{half} in int8"] = half, {name: as_bytes(vectors[:, :half]) for name, vectors in sets.items()}
    return [
        Loss(kind, size, {name: recall(cosines(sets[name]), cosines(small[name])) for name in sets})
        for kind, (size, small) in made.items()
    ]


def as_signs(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What bits stand for."""
    return np.where(vectors > 0, np.float32(1), np.float32(-1))


def as_bytes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers that codes of 8 bits stand for: the middles of the steps between a sample's ranges."""
    low, high = vectors[::SAMPLED].min(axis=0), vectors[::SAMPLED].max(axis=0)
    ranges = Ranges(tuple(low.tolist()), tuple(high.tolist()), False)
    codes = stored(vectors, "uint8", ranges).astype(np.float32)
    numbers: NDArray[np.float32] = low + (codes + 0.5) * (high - low) / 255
    return numbers


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of each two of the vectors, `(N, N)`; of signs it orders as Hamming's distance does. None is near itself."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    scores: NDArray[np.float32] = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    return scores


def recall(exact: NDArray[np.float32], small: NDArray[np.float32]) -> Recall:
    """By scores `(N, N)` in float32 and those of small vectors."""
    found, rescored = [], []
    for k in NEAREST:
        k = min(k, len(exact) - 1)
        wanted = nearest(exact, k)
        candidates = nearest(small, min(CANDIDATES * k, len(exact) - 1))
        again = np.take_along_axis(candidates, nearest(np.take_along_axis(exact, candidates, 1), k), 1)
        found.append(found_share(wanted, nearest(small, k)))
        rescored.append(found_share(wanted, again))
    return Recall(tuple(found), tuple(rescored))


def nearest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The places `(N, k)` of the largest scores of each row, the first of equal ones."""
    places: NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return places


def found_share(wanted: NDArray[np.int64], got: NDArray[np.int64]) -> float:
    """How many of the wanted places `(N, k)` of each row are among those got."""
    return float((wanted[:, :, None] == got[:, None, :]).any(axis=2).mean())


def show_losses(found: list[Loss], console: Console) -> None:
    """One table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("vectors")
    table.add_column("bytes", justify="right")
    for name in found[0].recalls:
        for k in NEAREST:
            table.add_column(f"{name}: {k}", justify="right")
            table.add_column("rescored", justify="right")
    for loss in found:
        cells = []
        for one in loss.recalls.values():
            for plain, again in zip(one.found, one.rescored, strict=True):
                cells += [f"{plain:.1%}", f"{again:.1%}"]
        table.add_row(loss.kind, f"{loss.bytes:,}", *cells)
    console.print(table)
    console.print(
        f"share of the nearest {' and '.join(map(str, NEAREST))} texts by float32 that small vectors find; rescored: "
        f"the first {CANDIDATES} times as many, scored again in float32"
    )
