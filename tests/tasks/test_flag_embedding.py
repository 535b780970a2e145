"""bge-m3's three outputs and its pair scores on a small bge-m3, against FlagEmbedding itself. Its sentences come one by
one: beside others it compares a query with their padding, too.
"""

import numpy as np
import pytest

from tests.tasks.m3 import save_m3
from tests.tasks.texts import corpus
from xlmr_ray import pipeline

TOLERANCE = 1e-5
TEXTS = [text for text in corpus() if text.strip() and text != "</s>"]
WIDTHS = [48, 20]


@pytest.fixture(scope="module", params=WIDTHS)
def m3(request, tmp_path_factory):
    """The folder, and FlagEmbedding's model of it."""
    flag = pytest.importorskip("FlagEmbedding")
    folder = save_m3(tmp_path_factory.mktemp("m3"), request.param)
    model = flag.BGEM3FlagModel(
        str(folder),
        use_fp16=False,
        devices="cpu",
        colbert_dim=request.param,
        query_max_length=64,
        passage_max_length=64,
        batch_size=1,
    )
    return folder, model


def test_three_outputs(m3):
    folder, model = m3
    theirs = model.encode(TEXTS, return_dense=True, return_sparse=True, return_colbert_vecs=True)
    dense, sparse, vectors = (
        pipeline(name, folder, device="cpu")(TEXTS) for name in ("embedding", "sparse", "multi-vector")
    )
    assert np.abs(np.stack(dense) - theirs["dense_vecs"]).max() < TOLERANCE
    for mine, other in zip(sparse, theirs["lexical_weights"], strict=True):
        expected = {int(one): float(weight) for one, weight in other.items()}
        assert mine == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    for mine, other in zip(vectors, theirs["colbert_vecs"], strict=True):
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() < TOLERANCE


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.4, 0.2, 0.4]])
def test_pair_scores(m3, weights):
    folder, model = m3
    pairs = [*zip(TEXTS[::2], TEXTS[1::2], strict=False), (TEXTS[0], TEXTS[0]), ("a", "b c")]
    theirs = model.compute_score(pairs, weights_for_different_modes=weights)
    scored = pipeline("hybrid-similarity", folder, device="cpu", weights=weights)
    mine = scored([{"text": query, "text_pair": passage} for query, passage in pairs])
    for place, one in enumerate(mine):
        assert one == pytest.approx({name: theirs[name][place] for name in one}, rel=TOLERANCE, abs=TOLERANCE)
