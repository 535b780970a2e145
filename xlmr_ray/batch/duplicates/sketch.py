"""What is kept of a document to find its copies: a hash of its text, and its MinHash signature (Broder 1997). The one
file that imports datasketch.

Two texts are the same where they are equal in Unicode's form NFC with every run of white space as one space. Shingles
are all runs of 9 characters of that, case-folded, so that languages without spaces between words are cut as others
are; what is shorter is one shingle. Equal texts have equal shingles.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.errors import UserError

if TYPE_CHECKING:
    from datasketch import MinHash

WIDTH = 9  # characters of a shingle
PERMUTATIONS = 256  # the standard error of an estimate of 0.8 is 0.025
SEED = 1
AT_ONCE = 1 << 14  # shingles; 16 MB in datasketch
# Of pairs that share no band and pairs that do for nothing, the latter are seen when signatures are compared.
WEIGHTS = (0.1, 0.9)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd; 2^64 by the golden ratio
BANDS = np.random.default_rng(SEED).integers(0, 1 << 63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(1)


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def shingled(text: str) -> str:
    """The text of which shingles are runs."""
    return normalised(text).casefold()


def shingle_hashes(text: str) -> NDArray[np.uint32]:
    """`(S)`: of every shingle of a text that is not empty, in order, repeated ones, too."""
    points = np.frombuffer(shingled(text).encode("utf-32-le"), np.uint32).astype(np.uint64)
    width = min(WIDTH, len(points))
    found = np.zeros(len(points) - width + 1, np.uint64)
    for place in range(width):
        found = found * MULTIPLIER + points[place : place + len(found)]
    found ^= found >> np.uint64(32)
    return ((found * MULTIPLIER) >> np.uint64(32)).astype(np.uint32)


def bands_and_rows(threshold: float) -> tuple[int, int]:
    """How a signature is cut: pairs of that Jaccard similarity share one of so many bands at least, as a rule. Raises
    UserError where datasketch is missing, or does not cut for such a threshold.
    """
    try:
        from datasketch import MinHashLSH
    except ImportError:
        raise UserError(
            "method minhash needs datasketch: pip install 'xlmr-ray[duplicates]', or leave it out of --methods"
        ) from None
    try:
        lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
    except ValueError as error:
        raise UserError(f"--jaccard: {threshold}: {error}; take one nearer to 0.8, or the method exact") from None
    return lsh.b, lsh.r


@cache
def empty() -> MinHash:
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, seed=SEED, hashfunc=int, scheme="affine32")


def signature(text: str) -> NDArray[np.uint32]:
    """`(PERMUTATIONS)` of a text that is not empty."""
    found = empty().copy()
    hashes = shingle_hashes(text)
    for start in range(0, len(hashes), AT_ONCE):
        found.update_batch(hashes[start : start + AT_ONCE])
    values: NDArray[np.uint32] = found.hashvalues
    return values


def band_keys(signatures: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """`(bands, N)` of signatures `(N, PERMUTATIONS)`: equal where all rows of the band are."""
    cut = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    found = (cut * BANDS[: bands * rows].reshape(bands, rows)).sum(2, dtype=np.uint64)
    found ^= found >> np.uint64(32)
    keys: NDArray[np.uint64] = (found * MULTIPLIER).T
    return keys


def sketch(rows: pa.Table, cut: tuple[int, int] | None) -> pa.Table:
    """Of a table with `text`: its other columns, `hash: binary(16)`, null where there is no text, and with `cut`, a
    number of bands and rows, `signature: binary(1024)` and `band_0 …: uint64`.
    """
    texts = [normalised(text or "") for text in rows["text"].to_pylist()]
    digests = [blake2b(text.encode(), digest_size=16).digest() if text else None for text in texts]
    found = rows.drop_columns(["text"]).append_column("hash", pa.array(digests, pa.binary(16)))
    if cut is None:
        return found
    signatures = np.zeros((len(texts), PERMUTATIONS), np.uint32)
    for number, text in enumerate(texts):
        if text:
            signatures[number] = signature(text)
    column = pa.Array.from_buffers(pa.binary(4 * PERMUTATIONS), len(texts), [None, pa.py_buffer(signatures)])
    found = found.append_column("signature", column)
    for number, keys in enumerate(band_keys(signatures, *cut)):
        found = found.append_column(f"band_{number}", pa.array(keys))
    return found
