import numpy as np
import openai
import pytest

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS

langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is of the extra `clients`")


def test_embeddings(url: str, vectors: list[list[float]]) -> None:
    model = langchain.OpenAIEmbeddings(
        model="mini", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(model.embed_documents(TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[0]), vectors[0], atol=1e-6)


def test_ids_of_another_tokenizer_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default it sends tiktoken's ids; tiktoken would fetch its vocabulary, so another stands in for it."""
    tiktoken = pytest.importorskip("tiktoken")

    class Encoding:
        def encode_ordinary(self, text: str) -> list[int]:
            return [9906, 1917]

        encode = encode_ordinary

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda model: Encoding())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: Encoding())
    model = langchain.OpenAIEmbeddings(model="mini", base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.UnprocessableEntityError, match="check_embedding_ctx_length=False"):
        model.embed_documents(TEXTS)


def test_40_texts(url: str) -> None:
    model = langchain.OpenAIEmbeddings(
        model="mini", base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(model.embed_documents([f"{number}: {TEXTS[0]}" for number in range(40)])) == 40


def test_rerank_of_40_documents(url: str, relevance: list[float]) -> None:
    cohere = pytest.importorskip("langchain_cohere", reason="langchain-cohere is of the extra `clients`")
    documents = [*DOCUMENTS, *[f"{number} has nothing to do with it." for number in range(37)]]
    ranked = cohere.CohereRerank(model="relevance", cohere_api_key="none", base_url=url, top_n=40).rerank(
        documents, QUERY
    )
    by_place = {one["index"]: one["relevance_score"] for one in ranked}
    assert [by_place[place] for place in range(3)] == pytest.approx(relevance)
    assert len(ranked) == 40
    assert [one["relevance_score"] for one in ranked] == sorted(by_place.values(), reverse=True)


def test_coheres_embeddings(url: str, vectors: list[list[float]]) -> None:
    cohere = pytest.importorskip("langchain_cohere", reason="langchain-cohere is of the extra `clients`")
    model = cohere.CohereEmbeddings(model="mini", cohere_api_key="none", base_url=url, user_agent="tests")
    np.testing.assert_allclose(model.embed_documents(TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[0]), vectors[0], atol=1e-6)
