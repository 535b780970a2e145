"""The paths of infinity and vLLM, in the forms that their users' programs send, and Cohere's embeddings."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.server import Running
from xlmr_ray import pipeline

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "人人生而自由"]
QUERY, LONG = "Who may go to school?", "right " * 700


def answered(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(http: httpx.Client, path: str, body: dict[str, Any], status: int, field: str) -> str:
    response = http.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == field, error
    return str(error["message"])


@pytest.fixture(scope="module")
def unit(server: Running) -> np.ndarray:
    """Vectors of `TEXTS`, of length 1."""
    return np.array(pipeline("embedding", "embedded:mini", normalize=True)(TEXTS))


def test_infinitys_embeddings(http: httpx.Client, unit: np.ndarray) -> None:
    answer = answered(http, "/embeddings", {"model": "mini", "input": TEXTS, "modality": "text", "user": "a"})
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], unit, atol=1e-6)
    short = answered(http, "/embeddings", {"input": TEXTS[0], "output_dimension": 8})
    assert len(short["data"][0]["embedding"]) == 8
    # Long texts are cut as there, and a header says so.
    response = http.post("/embeddings", json={"input": ["a", LONG]})
    assert (response.status_code, response.headers["x-truncated"]) == (200, "1")
    refused(http, "/embeddings", {"input": LONG, "truncate": False}, 413, "input")
    refused(http, "/embeddings", {"input": "a", "modality": "image"}, 422, "modality")
    refused(http, "/embeddings", {"input": "a", "dimensions": 4, "output_dimension": 8}, 422, "output_dimension")
    assert http.get("/models").json() == http.get("/v1/models").json()


def test_infinitys_rerank(http: httpx.Client, server: Running) -> None:
    body = {"model": "relevance", "query": QUERY, "documents": TEXTS, "return_documents": True}
    scores = pipeline("rerank", server.source("relevance"))([{"text": QUERY, "text_pair": text} for text in TEXTS])
    order = sorted(range(3), key=lambda place: -scores[place])
    answer = answered(http, "/rerank", body)
    assert answer["object"] == "rerank"
    assert [(one["index"], one["document"]) for one in answer["results"]] == [(i, TEXTS[i]) for i in order]
    assert [one["relevance_score"] for one in answer["results"]] == pytest.approx([scores[i] for i in order])
    raw = answered(http, "/rerank", {**body, "raw_scores": True})
    logits = [one["relevance_score"] for one in raw["results"]]
    assert 1 / (1 + np.exp(-np.array(logits))) == pytest.approx([scores[i] for i in order])
    # Elsewhere documents come back as objects; with fields of their own they are objects here, too.
    assert answered(http, "/v1/rerank", body)["results"][0]["document"] == {"text": TEXTS[order[0]]}
    fields = [{"text": text, "page": page} for page, text in enumerate(TEXTS)]
    assert answered(http, "/rerank", {**body, "documents": fields})["results"][0]["document"] == fields[order[0]]


def test_infinitys_classify(http: httpx.Client, server: Running) -> None:
    for raw in (False, True):
        function = {"function_to_apply": "none"} if raw else {}
        wanted = pipeline("text-classification", server.source("script"), top_k=None, **function)(TEXTS)
        answer = answered(http, "/classify", {"model": "script", "input": TEXTS, "raw_scores": raw})
        assert answer["object"] == "classify"
        for got, labels in zip(answer["data"], wanted, strict=True):
            assert [one["label"] for one in got] == [one["label"] for one in labels]
            assert [one["score"] for one in got] == pytest.approx([one["score"] for one in labels])


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")])
def test_vllms_score_of_a_reranker(http: httpx.Client, server: Running, names: tuple[str, str]) -> None:
    rank = pipeline("rerank", server.source("relevance"))
    for left, right in ((QUERY, TEXTS), (TEXTS, TEXTS[::-1]), (QUERY, TEXTS[0])):
        one, two = ([side] if isinstance(side, str) else side for side in (left, right))
        pairs = zip(one * len(two) if len(one) == 1 else one, two, strict=True)
        wanted = rank([{"text": text, "text_pair": other} for text, other in pairs])
        answer = answered(http, "/score", {"model": "relevance", names[0]: left, names[1]: right})
        assert [value["score"] for value in answer["data"]] == pytest.approx(wanted)
        assert [value["object"] for value in answer["data"]] == ["score"] * len(two)
    raw = pipeline("rerank", server.source("relevance"), function_to_apply="none", max_length=12)
    body = {"text_1": QUERY, "text_2": TEXTS[0], "use_activation": False, "truncate_prompt_tokens": 12}
    wanted = raw({"text": QUERY, "text_pair": TEXTS[0]})
    assert answered(http, "/v1/score", body)["data"][0]["score"] == pytest.approx(wanted)


def test_vllms_score_of_an_embedding_model(http: httpx.Client, unit: np.ndarray) -> None:
    answer = answered(http, "/score", {"model": "mini", "text_1": TEXTS, "text_2": TEXTS[::-1]})
    wanted = (unit * unit[::-1]).sum(axis=1)
    assert [one["score"] for one in answer["data"]] == pytest.approx(wanted.tolist(), abs=1e-6)
    refused(http, "/score", {"model": "mini", "text_1": "a", "text_2": "b", "use_activation": False}, 422,
            "use_activation")  # fmt: skip
    # Texts that are in several pairs are embedded once; what is said of them is said of the pairs.
    refused(http, "/score", {"model": "mini", "text_1": "a", "text_2": ["b", "a", LONG]}, 413, "text_2.2")
    refused(http, "/score", {"model": "mini", "text_1": ["a", "a", LONG], "text_2": TEXTS}, 413, "text_1.2")
    refused(http, "/score", {"model": "mini", "text_1": LONG, "text_2": TEXTS}, 413, "text_1")
    for one, cut in (("a", "2"), (LONG, "0,1,2")):
        body = {"model": "mini", "text_1": one, "text_2": ["b", "b", LONG], "truncate_prompt_tokens": -1}
        assert http.post("/score", json=body).headers["x-truncated"] == cut


def test_what_score_refuses(http: httpx.Client) -> None:
    for body, status, field in (
        ({"text_1": "a"}, 422, "text_1"),
        ({"text_1": "a", "documents": "b"}, 422, "documents"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, 422, "text_2"),
        ({"text_1": "a", "text_2": []}, 400, "text_2"),
        ({"text_1": "a", "text_2": LONG}, 413, "text_2"),
        ({"text_1": "a", "text_2": "b", "priority": 3}, 422, "priority"),
    ):
        refused(http, "/score", body, status, field)
    assert "truncate_prompt_tokens: -1" in refused(http, "/score", {"text_1": "a", "text_2": LONG}, 413, "text_2")
    assert http.post("/score", json={"text_1": "a", "text_2": LONG, "truncate_prompt_tokens": -1}).status_code == 200


def test_vllms_pooling(http: httpx.Client, server: Running, unit: np.ndarray) -> None:
    def values(**more: Any) -> list[Any]:
        return [one["data"] for one in answered(http, "/pooling", {"model": "mini", "input": TEXTS, **more})["data"]]

    np.testing.assert_allclose(values(task="embed"), unit, atol=1e-6)
    plain = pipeline("embedding", "embedded:mini", normalize=False)(TEXTS)
    np.testing.assert_allclose(values(task="embed", use_activation=False), np.array(plain), atol=1e-6)
    as_text = values(task="embed", encoding_format="base64")
    np.testing.assert_allclose([np.frombuffer(base64.b64decode(one), "<f4") for one in as_text], unit, atol=1e-6)
    states = [np.array(one)[0] for one in pipeline("feature-extraction", "embedded:mini")(TEXTS)]
    for got, wanted in zip(values(use_activation=False), states, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    for got, wanted in zip(values(task="token_embed"), states, strict=True):
        np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    labels = server.service.models["mini"].config.labels
    scores = pipeline("text-classification", "embedded:mini", top_k=None)(TEXTS)
    by_label = [{one["label"]: one["score"] for one in row} for row in scores]
    np.testing.assert_allclose(values(task="classify"), [[row[name] for name in labels] for row in by_label], atol=1e-6)
    refused(http, "/pooling", {"model": "script", "input": "a"}, 422, "task")
    refused(http, "/pooling", {"input": "a", "task": "token_classify"}, 422, "task")
    refused(http, "/pooling", {"input": "a", "task": "classify", "dimensions": 4}, 422, "dimensions")
    refused(http, "/pooling", {"input": [1, 2, 3], "task": "embed"}, 422, "input")


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_coheres_embeddings(http: httpx.Client, unit: np.ndarray, path: str) -> None:
    body = {"model": "mini", "texts": TEXTS, "input_type": "search_query"}
    answer = answered(http, path, {**body, "embedding_types": ["float", "binary", "ubinary", "base64"]})
    given = answer["embeddings"]
    np.testing.assert_allclose(given["float"], unit, atol=1e-6)
    np.testing.assert_array_equal(np.array(given["ubinary"], np.uint8), np.packbits(unit > 0, axis=1))
    np.testing.assert_array_equal(np.array(given["binary"]) + 128, given["ubinary"])
    np.testing.assert_allclose(
        [np.frombuffer(base64.b64decode(one), "<f4") for one in given["base64"]], unit, atol=1e-6
    )
    assert (answer["response_type"], answer["texts"]) == ("embeddings_by_type", TEXTS)
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    bare = answered(http, path, {"inputs": inputs, "input_type": "search_query"})["embeddings"]
    np.testing.assert_allclose(bare if path == "/v1/embed" else bare["float"], unit, atol=1e-6)
    response = http.post(path, json={**body, "texts": ["a", LONG]})
    assert (response.status_code, response.headers["x-truncated"]) == (200, "1")
    for change, status, field in (
        ({"truncate": "NONE", "texts": [LONG]}, 413, "texts.0"),
        ({"embedding_types": ["int8"]}, 422, "embedding_types"),
        ({"input_type": "image"}, 422, "input_type"),
        ({"inputs": inputs}, 422, "texts"),
        ({"texts": ["a"] * 1001}, 413, "texts"),
        ({"images": ["data:"]}, 422, "images"),
        ({"max_tokens": 513}, 422, "max_tokens"),
    ):
        refusal = http.post(path, json={**body, **change})
        assert refusal.status_code == status, refusal.text
        assert refusal.json()["message"].startswith(field), refusal.text
