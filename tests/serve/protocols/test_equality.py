"""What the service answers is what `pipeline()` answers, for every task."""

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.serve.server import Running
from tests.tasks.m3 import save_m3
from xlmr_ray import pipeline
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.tasks.registry import TASKS

TEXTS = [
    "Everyone has the right to life, liberty and security of person.",
    "Все люди рождаются свободными.",
    "人人生而自由",
    "No one. " * 200,
]
MASKED = ["Everyone has the <mask> to life.", "<mask> one shall <mask> held in slavery."]
PAIRS = [{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[2], "text_pair": TEXTS[0]}]
QUESTIONS = [
    {"question": "What has everyone?", "context": TEXTS[0]},
    {"question": "Кто?", "context": f"{TEXTS[1]} {TEXTS[3]}"},
]
CHOICES = [{"text": TEXTS[0], "choices": ["a", "life", "law"]}, {"text": TEXTS[2], "choices": ["自由"]}]
# task -> model of the service, inputs of it, options
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "embedding": ("mini", TEXTS[:3], {"normalize": True}),
    "feature-extraction": ("mini", TEXTS, {"layers": [0, -1], "pooling": "cls"}),
    "fill-mask": ("masked", MASKED, {"top_k": 7}),
    "multiple-choice": ("choice", CHOICES, {}),
    "perplexity": ("causal", TEXTS, {"long": "windows"}),
    "pseudo-perplexity": ("masked", TEXTS[:3], {"passes": 2}),
    "question-answering": ("answers", QUESTIONS, {"max_answer_len": 30, "doc_stride": 20}),
    "rerank": ("relevance", PAIRS, {"function_to_apply": "none"}),
    "sentence-similarity": ("mini", PAIRS, {}),
    "text-classification": ("mini", TEXTS, {"top_k": 5, "long": "windows", "stride": 30}),
    "text-generation": ("causal", TEXTS[:2], {"max_new_tokens": 5, "seed": 3}),
    "token-classification": ("entities", TEXTS, {"aggregation_strategy": "first", "ignore_labels": []}),
    "zero-shot-classification": ("entailment", TEXTS[:2], {"candidate_labels": ["law", "war"], "multi_label": True}),
}

# Of a checkpoint with bge-m3's layers, by the route that any task has: task -> inputs of it, options
M3_CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "hybrid-similarity": (PAIRS, {"weights": [0.4, 0.2, 0.4]}),
    "multi-vector": (TEXTS, {"normalize": False, "max_length": 20}),
    "passage-embedding": (TEXTS, {"passage_tokens": 7, "stride": 5}),
    "sparse": (TEXTS, {"pieces": True, "long": "windows"}),
}


def test_every_task_is_compared() -> None:
    assert CASES.keys() | M3_CASES.keys() == TASKS.keys()


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, TestClient]]:
    folder = str(save_m3(tmp_path_factory.mktemp("m3")))
    settings = ServeSettings.model_validate(
        {"models": [{"model": folder, "tasks": list(M3_CASES)}], "engine": {"threads": 1, "tokenizers": 1}}
    )
    service = Service.load(settings)
    yield folder, TestClient(build_app(service, settings))
    service.close()


@pytest.mark.parametrize("task", M3_CASES)
def test_same_as_pipeline_by_the_route_of_any_task(m3: tuple[str, TestClient], task: str) -> None:
    folder, client = m3
    inputs, options = M3_CASES[task]
    response = client.post(f"/tasks/{task}", json={"inputs": inputs, "parameters": options})
    assert response.status_code == 200, response.text
    assert_same(response.json(), pipeline(task, folder, **options)(inputs))
    response = client.post(f"/tasks/{task}", json={"inputs": inputs[0]})
    one = pipeline(task, folder)(inputs[0])
    assert_same(response.json(), {str(key): value for key, value in one.items()} if isinstance(one, dict) else one)


def test_given_passages(m3: tuple[str, TestClient]) -> None:
    folder, client = m3
    inputs = [{"text": TEXTS[0], "spans": [[0, 8], [5, 20]]}, {"text": TEXTS[3], "spans": []}]
    response = client.post("/tasks/passage-embedding", json={"inputs": inputs})
    assert response.status_code == 200, response.text
    assert_same(response.json(), pipeline("passage-embedding", folder)(inputs))


@pytest.mark.parametrize(
    ("task", "body", "status", "message"),
    [
        (
            "passage-embedding",
            {"inputs": {"text": "a", "spans": [[0]]}},
            422,
            "inputs.spans: expected a list of [start, end]",
        ),
        ("passage-embedding", {"inputs": {"text": "a", "spans": [[0, 2]]}}, 422, "span 0 is [0, 2] in a text of 1"),
        ("passage-embedding", {"inputs": {"text": "a", "spans": "[[0, 1]]"}}, 422, "inputs.spans: expected a list of"),
        ("passage-embedding", {"inputs": {"text": "a b " * 200, "spans": [[0, 799]] * 4000}}, 413, "as the result"),
        ("sparse", {"inputs": TEXTS[0], "parameters": {"peaces": True}}, 422, "did you mean 'pieces'?"),
        ("sparse", {"inputs": TEXTS[0], "parameters": {"head_file": "x"}}, 422, "parameters.head_file: no such field"),
        ("sparse", {"inputs": TEXTS[0], "parameters": {"pieces": 1}}, 422, "parameters.pieces: expected a boolean"),
        ("sparse", {"inputs": {"txt": "a"}}, 422, "inputs: a document has the fields text and no other"),
        ("sparse", {"inputs": [TEXTS[0], ""]}, 400, "inputs.1: the text is empty"),
        ("sparse", {"inputs": []}, 400, "the list is empty"),
        ("hybrid-similarity", {"inputs": PAIRS[0] | {"text_pair": ""}}, 400, "inputs.text_pair: the text is empty"),
        ("hybrid-similarity", {"inputs": "a"}, 422, "inputs.text_pair: expected a text, got null"),
        ("hybrid-similarity", {"inputs": PAIRS[0], "parameters": {"weights": [0, 0, 1]}}, 422, "weights: "),
        ("rerank", {"inputs": PAIRS[0]}, 404, "task rerank is not one of this service"),
    ],
)
def test_what_the_route_of_any_task_refuses(
    m3: tuple[str, TestClient], task: str, body: dict[str, Any], status: int, message: str
) -> None:
    response = m3[1].post(f"/tasks/{task}", json=body)
    assert (response.status_code, message in response.json()["error"]) == (status, True), response.text


def test_options_that_only_the_settings_have_are_none_of_a_request(m3: tuple[str, TestClient]) -> None:
    body = m3[1].get("/openapi.json").json()["components"]["schemas"]["SparseParameters"]["properties"]
    assert body.keys() == {"pieces", "max_length", "long", "stride"}


@pytest.mark.parametrize("task", CASES)
def test_same_as_pipeline(server: Running, http: httpx.Client, task: str) -> None:
    model, inputs, options = CASES[task]
    wanted = pipeline(task, server.source(model), **options)(inputs)
    got = asked(http, task, inputs, options)
    if task == "feature-extraction":
        wanted = [np.asarray(one) for one in wanted]
    if task == "zero-shot-classification":
        wanted = [
            [{"label": label, "score": score} for label, score in zip(one["labels"], one["scores"], strict=True)]
            for one in wanted
        ]
    assert_same(got, wanted)


@pytest.mark.parametrize("task", ["fill-mask", "multiple-choice", "question-answering", "token-classification"])
def test_one_alone_is_no_list(server: Running, http: httpx.Client, task: str) -> None:
    model, inputs, options = CASES[task]
    wanted = pipeline(task, server.source(model), **options)(inputs[0])
    response = http.post(f"/tasks/{task}", json={"inputs": inputs[0], "parameters": options})
    assert_same(response.json(), wanted)


def test_states_of_tokens(server: Running, http: httpx.Client) -> None:
    wanted = pipeline("feature-extraction", "embedded:mini")(TEXTS[0])
    response = http.post("/tasks/feature-extraction", json={"inputs": TEXTS[0], "parameters": {}})
    assert_same(response.json(), wanted)
    response = http.post("/embed_all", json={"inputs": [TEXTS[0]]})
    assert_same(response.json(), wanted)


def asked(http: httpx.Client, task: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    body: dict[str, Any] = {"inputs": inputs, "parameters": options}
    if task == "embedding":
        body = {"inputs": inputs, **options}
    if task == "feature-extraction":
        body["truncate"] = True
    if task == "sentence-similarity":
        scores = []
        for pair in inputs:
            source, sentences = pair["text"], [pair["text_pair"]]
            answer = http.post(f"/tasks/{task}", json={"inputs": {"source_sentence": source, "sentences": sentences}})
            scores += answer.json()
        return scores
    response = http.post(f"/tasks/{task}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def assert_same(got: Any, wanted: Any) -> None:
    """Numbers to 1e-6, of their size where that is more than 1: large ones do not have so many digits in fp32."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(got[key], value)
    elif isinstance(wanted, np.ndarray):
        np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-6, atol=1e-6)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    else:
        assert got == wanted
