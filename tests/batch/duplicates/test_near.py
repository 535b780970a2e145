import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.batch.duplicates import near
from xlmr_ray.batch.duplicates.near import Blocks, centres, lot, near_pairs, of_length_one
from xlmr_ray.batch.duplicates.vectors import blocks

FLOATS = pa.float32()


def block_of(rows: np.ndarray, numbers: list[int], kind: pa.DataType = FLOATS) -> pa.Table:
    flat = pa.array(rows.ravel().astype(kind.to_pandas_dtype()), kind)
    return pa.table(
        {
            "source": [f"f{number % 3}" for number in numbers],
            "row": pa.array([number // 3 for number in numbers], pa.int64()),
            "language": ["de"] * len(numbers),
            "vector": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }
    )


def by_hand(block: pa.Table, threshold: float) -> list[tuple]:
    """The rule, one by one in float64."""
    rows = sorted(block.to_pylist(), key=lambda row: (row["source"], row["row"]))
    stays: list[dict] = []
    gone = []
    for row in rows:
        vector = np.array(row["vector"], np.float64)
        cosines = [
            vector @ np.array(one["vector"]) / np.linalg.norm(vector) / np.linalg.norm(one["vector"]) for one in stays
        ]
        if cosines and max(cosines) >= threshold:
            of = stays[int(np.argmax(cosines))]
            gone.append((row["source"], row["row"], of["source"], of["row"], max(cosines)))
        else:
            stays.append(row)
    return gone


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([3, 16, 256]))
def test_pairs_of_a_block(seed, size, threshold, tile):
    """Equal to the rule by hand, in whichever order the rows come, and however they are cut."""
    drawn = np.random.default_rng(seed)
    rows = drawn.normal(size=(5, 8))[drawn.integers(0, 5, size)] + drawn.normal(size=(size, 8)) * 0.2
    block = block_of(rows, drawn.permutation(size).tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "TILE", tile)
        found = near_pairs(block, threshold)
        again = near_pairs(block.take(pa.array(drawn.permutation(size))), threshold)
    assert found.equals(again)
    names = ("source", "row", "duplicate_of_source", "duplicate_of_row")
    wanted = by_hand(block, threshold)
    assert list(zip(*(found[name].to_pylist() for name in names), strict=True)) == [row[:4] for row in wanted]
    assert found["similarity"].to_pylist() == pytest.approx([row[4] for row in wanted], abs=1e-6)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_equal_vectors_have_a_cosine_of_one(kind):
    rows = np.repeat(np.random.default_rng(0).normal(size=(1, 384)), 3, axis=0)
    assert near_pairs(block_of(rows, [0, 1, 2], kind), 1.0)["row"].to_pylist() == [0, 0]


def test_vectors_of_zeros_are_near_nothing():
    assert near_pairs(block_of(np.zeros((4, 8)), [0, 1, 2, 3]), 0.1).num_rows == 0
    assert not of_length_one(block_of(np.full((2, 8), np.nan), [0, 1])["vector"]).any()


def test_a_language_is_cut_by_its_centres():
    drawn = np.random.default_rng(5)
    of = drawn.integers(0, 3, 300)
    rows = np.eye(8)[of] + drawn.normal(size=(300, 8)) * 0.05
    unit = of_length_one(block_of(rows, list(range(300)))["vector"])
    middles = centres(unit, 3)
    cut = Blocks({"de": 0, "fr": 3}, {"de": middles})
    found = cut.of("de", unit)
    assert all(len(set(found[of == one].tolist())) == 1 for one in range(3))
    assert (np.concatenate([cut.of("de", unit[:7]), cut.of("de", unit[7:])]) == found).all()
    assert cut.of("fr", unit[:2]).tolist() == [3, 3]
    table = pa.table({"language": ["de"] * 3, "centre": middles.tolist()})
    assert blocks(pa.table({"language": ["de", "fr"], "documents": [9, 1]}), table).first == {"de": 0, "fr": 3}


def test_a_sample_is_the_same_whoever_draws_it():
    drawn = lot("s3://b/f", np.arange(20_000))
    assert (drawn[5:9] == lot("s3://b/f", np.arange(5, 9))).all()
    assert abs((drawn < 0.1).mean() - 0.1) < 0.01
