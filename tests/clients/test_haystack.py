import numpy as np
import pytest

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS

reason = "Haystack and its integration are of the extra `clients`"
haystack = pytest.importorskip("haystack", reason=reason)
embedders = pytest.importorskip("haystack_integrations.components.embedders.huggingface_api", reason=reason)
rankers = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api", reason=reason)


def test_embedders(url: str, vectors: list[list[float]]) -> None:
    where = {"api_type": "text_embeddings_inference", "api_params": {"url": url}, "normalize": True, "token": None}
    text = embedders.HuggingFaceAPITextEmbedder(**where).run(text=TEXTS[0])
    np.testing.assert_allclose(text["embedding"], vectors[0], atol=1e-6)
    documents = [haystack.Document(content=one) for one in TEXTS]
    embedded = embedders.HuggingFaceAPIDocumentEmbedder(**where, progress_bar=False).run(documents=documents)
    np.testing.assert_allclose([one.embedding for one in embedded["documents"]], vectors, atol=1e-6)


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_ranker(url: str, relevance: list[float], direction: str) -> None:
    ranker = rankers.HuggingFaceTEIRanker(url=url, top_k=2, token=None)
    documents = [haystack.Document(content=one) for one in DOCUMENTS]
    side = next(one for one in rankers.ranker.TruncationDirection if one.value == direction)
    ranked = ranker.run(query=QUERY, documents=documents, truncation_direction=side)["documents"]
    assert [one.score for one in ranked] == pytest.approx(sorted(relevance, reverse=True)[:2])


def test_errors(url: str) -> None:
    ranker = rankers.HuggingFaceTEIRanker(url=url, token=None, max_retries=1)
    with pytest.raises(RuntimeError, match=r"texts\.0.*512 tokens"):
        ranker.run(query=QUERY, documents=[haystack.Document(content="word " * 600)])
