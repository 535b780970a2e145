"""`tei-client`, which asks `/info` first for the kind of model that it talks to."""

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from tei_client.clients.http_client import HttpClient
from tei_client.models import TruncationDirection

from tests.clients.conftest import DOCUMENTS, QUERY, TEXTS
from tests.serve.server import Running
from xlmr_ray import pipeline


@pytest.fixture
def client(url: str) -> Iterator[HttpClient]:
    made = HttpClient(url)
    yield made
    made.client.close()


def of(url: str, model: str) -> HttpClient:
    """One for another than the first model of the service, by the query that every route takes."""
    return HttpClient(url, params={"model": model})


def test_health_and_info(client: HttpClient) -> None:
    assert client.health()
    info = client.info()
    assert info.server_model_id == "mini"
    assert info.server_model_type == "embedding"
    assert info.max_input_length == 512


def test_embed(client: HttpClient, vectors: list[list[float]]) -> None:
    np.testing.assert_allclose(client.embed(TEXTS), vectors, atol=1e-6)
    np.testing.assert_allclose(client.embed(TEXTS[0]), vectors[:1], atol=1e-6)
    ids = [result.get_ids() for result in client.tokenize(TEXTS)]
    np.testing.assert_allclose(client.embed(ids), vectors, atol=1e-6)
    plain = client.embed(TEXTS, normalize=False)
    np.testing.assert_allclose(plain, [one.tolist() for one in pipeline("embedding")(TEXTS)], atol=1e-6)
    again = asyncio.run(HttpClient(str(client.client.base_url)).async_embed(TEXTS))
    np.testing.assert_allclose(again, vectors, atol=1e-6)


def test_embed_all(client: HttpClient) -> None:
    for got, wanted in zip(client.embed_all(TEXTS), pipeline("feature-extraction")(TEXTS), strict=True):
        np.testing.assert_allclose([got], wanted, atol=1e-5)


def test_tokens_there_and_back(client: HttpClient) -> None:
    results = client.tokenize(TEXTS)
    for text, result in zip(TEXTS, results, strict=True):
        assert [token.special for token in result.tokens] == [True, *[False] * (len(result.tokens) - 2), True]
        assert all(text[token.start : token.stop] == token.text for token in result.tokens if not token.special)
    assert client.decode([result.get_ids() for result in results]) == TEXTS
    assert client.decode(results[0].get_ids(), skip_special_tokens=False) == [f"<s> {TEXTS[0]}</s>"]
    assert [token.special for token in client.tokenize("a", add_special_tokens=False)[0].tokens] == [False]
    assert client.prompt_names() == [""]


def test_classify(url: str, server: Running) -> None:
    client = of(url, "script")
    wanted = pipeline("text-classification", server.source("script"), top_k=None)(TEXTS)
    for result, labels in zip(client.classify(TEXTS), wanted, strict=True):
        assert [(one.label, pytest.approx(one.score)) for one in result.scores] == [
            tuple(one.values()) for one in labels
        ]
    (logits,) = client.classify(TEXTS[0], raw_scores=True)
    assert logits.scores[0].score > 1
    (pair,) = client.classify((TEXTS[0], TEXTS[1]))
    (wanted,) = pipeline("text-classification", server.source("script"))([{"text": TEXTS[0], "text_pair": TEXTS[1]}])
    assert (pair.scores[0].label, pair.scores[0].score) == (wanted["label"], pytest.approx(wanted["score"]))


def test_rerank(url: str, relevance: list[float]) -> None:
    client = of(url, "relevance")
    assert client.info().server_model_type == "reranker"
    ranks = client.rerank(QUERY, DOCUMENTS, return_text=True).ranks
    order = sorted(range(3), key=lambda place: -relevance[place])
    assert [one.index for one in ranks] == order
    assert [one.score for one in ranks] == pytest.approx([relevance[place] for place in order])
    assert [one.text for one in ranks] == [DOCUMENTS[place] for place in order]


def test_long_texts(client: HttpClient) -> None:
    long = "right " * 800 + "end"
    answer = httpx.post(client.client.base_url.join("embed"), json={"inputs": ["a", long]})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "Validation")
    assert answer.json()["error"].startswith("inputs.1: ")
    right = client.embed(long, truncate=True)
    left = client.embed(long, truncate=True, truncation_direction=TruncationDirection.Left)
    np.testing.assert_allclose(right, client.embed("right " * 700, truncate=True), atol=1e-6)
    assert np.abs(np.array(left) - right).max() > 1e-3
    np.testing.assert_allclose(
        left,
        client.embed("left " + "right " * 700 + "end", truncate=True, truncation_direction=TruncationDirection.Left),
        atol=1e-6,
    )
