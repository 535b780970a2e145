from typing import Any

import cohere
import numpy as np
import pytest
from cohere.core.api_error import ApiError

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS
from tests.serve.server import Running
from xlmr_ray import pipeline


@pytest.fixture(params=["v1", "v2"])
def client(request: pytest.FixtureRequest, url: str) -> Any:
    made = cohere.Client if request.param == "v1" else cohere.ClientV2
    return made(api_key="none", base_url=url)


def test_rerank(client: Any, relevance: list[float]) -> None:
    answer = client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS)
    order = sorted(range(3), key=lambda place: -relevance[place])
    assert [one.index for one in answer.results] == order
    assert [one.relevance_score for one in answer.results] == pytest.approx([relevance[place] for place in order])
    assert answer.id
    (best,) = client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, top_n=1).results
    assert best.index == order[0]


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(cohere.NotFoundError, match="there are: mini"):
        client.rerank(model="rerank-v9", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.UnprocessableEntityError, match="top_n"):
        client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, top_n=0)
    with pytest.raises(cohere.BadRequestError, match=r"documents\.1"):
        client.rerank(model="relevance", query=QUERY, documents=["a", ""])


def test_40_documents(client: Any, server: Running) -> None:
    documents = [f"{number}: {DOCUMENTS[number % 3]}" for number in range(40)]
    scores = pipeline("rerank", server.source("relevance"))([{"text": QUERY, "text_pair": one} for one in documents])
    answer = client.rerank(model="relevance", query=QUERY, documents=documents)
    assert [one.relevance_score for one in answer.results] == pytest.approx(sorted(scores, reverse=True))


def test_documents_with_fields(url: str) -> None:
    client = cohere.Client(api_key="none", base_url=url)
    documents = [{"text": text, "page": str(page)} for page, text in enumerate(DOCUMENTS)]
    answer = client.rerank(
        model="relevance", query=QUERY, documents=documents, return_documents=True, rank_fields=["text"]
    )
    assert [one.document.text for one in answer.results] == [DOCUMENTS[one.index] for one in answer.results]
    assert [one.document.page for one in answer.results] == [str(one.index) for one in answer.results]
    with pytest.raises(cohere.UnprocessableEntityError, match="max_chunks_per_doc"):
        client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, max_chunks_per_doc=4)


def test_what_cannot_be_done_is_refused(url: str) -> None:
    client = cohere.ClientV2(api_key="none", base_url=url)
    client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=4096)
    with pytest.raises(cohere.UnprocessableEntityError, match="max_tokens_per_doc"):
        client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, max_tokens_per_doc=100)
    with pytest.raises(cohere.UnprocessableEntityError, match="priority"):
        client.rerank(model="relevance", query=QUERY, documents=DOCUMENTS, priority=3)


def test_embed(client: Any, vectors: list[list[float]]) -> None:
    given = client.embed(model="mini", texts=TEXTS, input_type="search_document", embedding_types=["float", "ubinary"])
    np.testing.assert_allclose(given.embeddings.float_, vectors, atol=1e-6)
    np.testing.assert_array_equal(given.embeddings.ubinary, np.packbits(np.array(vectors) > 0, axis=1))
    assert given.texts == TEXTS


def test_embed_without_an_encoding(url: str, vectors: list[list[float]]) -> None:
    client = cohere.Client(api_key="none", base_url=url)
    np.testing.assert_allclose(client.embed(model="mini", texts=TEXTS).embeddings, vectors, atol=1e-6)
    with pytest.raises(ApiError) as long:
        client.embed(model="mini", texts=["right " * 700], truncate="NONE")
    assert long.value.status_code == 413
