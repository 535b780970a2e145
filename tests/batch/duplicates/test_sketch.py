import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketch import MinHash

from tests.batch.duplicates.copies import jaccard, shingles
from xlmr_ray.batch.duplicates import sketch
from xlmr_ray.batch.duplicates.sketch import band_keys, bands_and_rows, shingle_hashes, signature
from xlmr_ray.errors import UserError


@pytest.fixture(scope="module")
def texts(udhr) -> list[str]:
    return pq.read_table(udhr / "part-0.parquet")["text"].to_pylist()[::7]


def hash_of(text: str | None) -> bytes | None:
    rows = pa.table({"source": ["f"], "row": [0], "text": pa.array([text], pa.string())})
    return sketch.sketch(rows, None)["hash"][0].as_py()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ein Bär", unicodedata.normalize("NFD", "Ein Bär"), True),
        ("a b", "\n a\u00a0\u3000\t b \r\n", True),
        ("人人 生而", "人人\u3000生而", True),
        ("a b", "ab", False),
        ("A b", "a b", False),
        ("ﬁn", "fin", False),  # not NFKC
        ("x" * 5000 + "a", "x" * 5000 + "b", False),
    ],
)
def test_which_texts_are_the_same(one, other, same):
    assert (hash_of(one) == hash_of(other)) is same
    if same:
        assert (signature(one) == signature(other)).all()


@pytest.mark.parametrize("text", [None, "", " \n\u00a0"])
def test_a_row_without_text_has_no_hash(text):
    assert hash_of(text) is None


def test_shingles_are_runs_of_characters(texts):
    everything: dict[str, int] = {}
    for text in [*texts, "kurz", "x", "👩‍👩‍👧 und İstanbul"]:
        hashes = shingle_hashes(text)
        wanted = shingles(text)
        assert len(set(hashes.tolist())) == len(wanted)
        everything |= dict.fromkeys(wanted, 0)
    assert len(everything) > 10_000


def test_a_signature_is_datasketchs(texts, monkeypatch):
    for text in texts[:20]:
        whole = MinHash(num_perm=256, seed=1, hashfunc=lambda value: value, scheme="affine32")
        whole.update_batch([int(value) for value in shingle_hashes(text)])
        with monkeypatch.context() as patch:
            patch.setattr(sketch, "AT_ONCE", 7)
            assert (signature(text) == whole.hashvalues).all()
        assert (signature(text) == whole.hashvalues).all()


def test_estimates_are_near_the_jaccard_similarity(texts):
    """Each within five standard errors, and right on average."""
    errors = []
    for text in texts[:60]:
        for part in (0.5, 0.8, 0.9, 0.97):
            other = text[: int(part * len(text))]
            true = jaccard(shingles(text), shingles(other))
            errors.append((signature(text) == signature(other)).mean() - true)
            assert abs(errors[-1]) <= 5 * (true * (1 - true) / 256) ** 0.5 + 1e-9
    assert abs(np.mean(errors)) < 0.01


def test_keys_of_a_band_are_equal_where_its_rows_are():
    drawn = np.random.default_rng(3).integers(0, 2, (400, 256)).astype(np.uint32)
    keys = band_keys(drawn, 60, 4)
    for band in (0, 31, 59):
        rows = [tuple(row) for row in drawn[:, 4 * band : 4 * band + 4].tolist()]
        assert len(set(zip(rows, keys[band].tolist(), strict=True))) == len(set(rows)) == len(set(keys[band].tolist()))
    assert len({keys[band][(drawn[:, 4 * band : 4 * band + 4] == 1).all(1)][0] for band in range(20)}) == 20


def test_bands_by_threshold():
    for threshold in (0.3, 0.8, 0.97):
        bands, rows = bands_and_rows(threshold)
        assert bands * rows <= 256
        assert 1 - (1 - threshold**rows) ** bands > 0.8
    with pytest.raises(UserError, match=r"^--jaccard: 1\.0: The number of bands are too small"):
        bands_and_rows(1.0)
