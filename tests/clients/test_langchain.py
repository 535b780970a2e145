import numpy as np
import openai
import pytest

from tests.clients.conftest import TEXTS

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
