"""What the service answers is what `pipeline()` answers, for every task."""

from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.server import Running
from xlmr_ray import pipeline
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


def test_every_task_is_compared() -> None:
    assert CASES.keys() == {name for name, task in TASKS.items() if task.online}


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
