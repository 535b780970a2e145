"""What clients are known to send beside what is needed, byte for byte as they send it: taken, or ignored by the rule of
`docs/clients.md`; and what would change the answer is refused by its name.
"""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from tests.serve.server import Running
from xlmr_ray import pipeline
from xlmr_ray.serve.protocols import cohere, openai, task_bodies, tei_bodies
from xlmr_ray.serve.protocols.body import Body

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]
QUERY, DOCUMENTS = (
    "Who may go to school?",
    ["No one is a slave.", "Everyone has the right to education.", "人人生而自由"],
)
CONTEXT = "Everyone has the right to education. Education shall be free."
HUB = {"wait_for_model": True, "use_gpu": False, "use_cache": True}


def answered(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_openai_without_a_model(http: httpx.Client) -> None:
    """As Dify's plug-in for text-embeddings-inference asks."""
    bare = answered(http, "/v1/embeddings", {"input": TEXTS})
    assert bare == answered(http, "/v1/embeddings", {"input": TEXTS, "model": "mini"})


@pytest.mark.parametrize(
    ("path", "body", "there"),
    [
        ("/v1/embeddings", {"input": TEXTS}, "mini"),
        ("/embeddings", {"input": TEXTS}, "mini"),
        ("/classify", {"input": TEXTS}, "script"),
        ("/pooling", {"input": TEXTS, "task": "classify"}, "script"),
        ("/score", {"text_1": QUERY, "text_2": DOCUMENTS}, "relevance"),
        ("/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS}, "relevance"),
        ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, "relevance"),
        ("/rerank", {"query": QUERY, "documents": DOCUMENTS}, "relevance"),
        ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}, "relevance"),
        ("/v2/rerank", {"query": QUERY, "documents": DOCUMENTS}, "relevance"),
        ("/v1/embed", {"texts": TEXTS}, "mini"),
        ("/v2/embed", {"texts": TEXTS}, "mini"),
        ("/embed", {"inputs": TEXTS}, "mini"),
        ("/predict", {"inputs": TEXTS[0]}, "script"),
    ],
)
def test_the_model_of_the_path(http: httpx.Client, path: str, body: dict[str, Any], there: str) -> None:
    """On every route, as in the body; the first model with the task is another one for `script`."""
    once = {"id", "created"}
    in_path, in_body = (
        answered(http, *asked) for asked in ((f"{path}?model={there}", body), (path, {**body, "model": there}))
    )
    if isinstance(in_path, dict):
        in_path, in_body = ({k: v for k, v in one.items() if k not in once} for one in (in_path, in_body))
    assert in_path == in_body
    assert http.post(f"{path}?model=nobody", json=body).status_code == 404
    assert http.post(f"{path}?model={there}", json={**body, "model": "another"}).status_code == 422


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": TEXTS}),
        ("/embed_all", {"inputs": TEXTS}),
        ("/predict", {"inputs": TEXTS[0]}),
        ("/rerank", {"query": QUERY, "texts": DOCUMENTS}),
        ("/similarity", {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}),
        ("/tokenize", {"inputs": TEXTS}),
        ("/decode", {"ids": [300, 301]}),
        ("/", {"inputs": TEXTS}),
        ("/tasks/feature-extraction", {"inputs": TEXTS}),
        ("/tasks/embedding", {"inputs": TEXTS}),
        ("/tasks/text-classification", {"inputs": TEXTS}),
        ("/tasks/fill-mask", {"inputs": "a <mask>"}),
        ("/tasks/rerank", {"inputs": {"query": QUERY, "documents": DOCUMENTS}}),
        ("/tasks/question-answering", {"inputs": {"question": QUERY, "context": CONTEXT}}),
    ],
)
def test_hub_options_change_nothing(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """As Weaviate's `text2vec-huggingface` and LangChain's classes for the hub's own service ask."""
    plain = answered(http, path, body)
    assert answered(http, path, {**body, "options": HUB}) == plain
    response = http.post(path, json={**body, "options": {"use_cach": True}})
    assert response.status_code == 422
    assert "options.use_cach: no such field" in response.text


def test_rerank_as_litellm_asks_hugging_face(http: httpx.Client) -> None:
    body = {"raw_scores": False, "truncation_direction": "Right", "query": QUERY, "texts": DOCUMENTS}
    every = answered(http, "/rerank", {**body, "return_text": True})
    assert len(every) == 3
    assert answered(http, "/rerank", {**body, "return_text": True, "top_n": 2, "model": "relevance"}) == every[:2]
    response = http.post("/rerank", json={**body, "model": "another"})
    assert response.status_code == 404
    assert "there are: mini" in response.text


def test_empty_parameters(http: httpx.Client) -> None:
    for path in ("/embed", "/embed_all", "/tasks/embedding"):
        plain = answered(http, path, {"inputs": TEXTS})
        assert answered(http, path, {"inputs": TEXTS, "parameters": {}}) == plain
        response = http.post(path, json={"inputs": TEXTS, "parameters": {"pooling": "cls"}})
        assert response.status_code == 422
        assert "parameters.pooling: no such field; leave it out" in response.text


def test_labels_with_commas(http: httpx.Client, server: Running) -> None:
    wanted = pipeline("zero-shot-classification", server.source("entailment"), candidate_labels="law, war")(CONTEXT)
    parameters = {"candidate_labels": "law, war"}
    got = answered(http, "/tasks/zero-shot-classification", {"inputs": CONTEXT, "parameters": parameters})
    assert [one["label"] for one in got] == wanted["labels"]
    assert [one["score"] for one in got] == pytest.approx(wanted["scores"])
    for none in ("", " , ", []):
        body = {"inputs": CONTEXT, "parameters": {"candidate_labels": none}}
        assert http.post("/tasks/zero-shot-classification", json=body).status_code == 422
    many = {"inputs": CONTEXT, "parameters": {"candidate_labels": ",".join("abcdefgh" * 1000)}}
    assert http.post("/tasks/zero-shot-classification", json=many).status_code == 413


def test_a_question_without_inputs(http: httpx.Client) -> None:
    question = {"question": "What shall be free?", "context": CONTEXT}
    nested = answered(http, "/tasks/question-answering", {"inputs": question, "parameters": {"top_k": 2}})
    assert answered(http, "/tasks/question-answering", {**question, "parameters": {"top_k": 2}}) == nested
    response = http.post("/tasks/question-answering", json={"question": "What?"})
    assert response.status_code == 422
    assert "context: is missing" in response.text
    assert http.post("/tasks/question-answering", json={**question, "inputs": question}).status_code == 422


def test_a_model_by_the_name_that_the_settings_have(http: httpx.Client, server: Running) -> None:
    """Clients of servers with one model name it as its folder or its place on the hub."""
    wanted = answered(http, "/v1/embeddings", {"input": TEXTS, "model": "mini"})
    assert answered(http, "/v1/embeddings", {"input": TEXTS, "model": "embedded:mini"}) == wanted
    assert http.get("/v1/models/embedded:mini/heads/relevance").json()["id"] == "relevance"
    assert answered(http, "/tasks/rerank?model=embedded:mini/heads/relevance", RANKED) == answered(
        http, "/tasks/rerank", {**RANKED, "model": "relevance"}
    )
    response = http.post("/tasks/rerank?model=mini", json={**RANKED, "model": "relevance"})
    assert response.status_code == 422
    assert "two models" in response.text


RANKED = {"inputs": {"query": QUERY, "documents": DOCUMENTS}}


@pytest.mark.parametrize("module", [tei_bodies, task_bodies, openai, cohere])
def test_a_long_wrong_list_is_said_once(module: Any) -> None:
    """Of each member of a union its first error: half a million of them took 20 s and 2 GB."""
    found = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, Body)]
    bodies = [one for one in found if one.model_fields]
    assert bodies
    for body in bodies:
        for wrong in ([1] * 200 + [1.5], ["a"] * 200 + [1], [[1]] * 200 + ["a"], [{}] * 200, [["a"]] * 200 + [[1]]):
            given = dict.fromkeys(body.model_fields, wrong)
            with pytest.raises(ValidationError) as raised:
                body.model_validate(given)
            assert raised.value.error_count() < 12 * len(body.model_fields)
