"""What text-embeddings-inference's routes do beyond what its clients ask of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.serve.server import Running
from xlmr_ray import pipeline
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными."]
LONG = "right " * 700
TIMES = ("x-total-time", "x-compute-time", "x-tokenization-time", "x-queue-time", "x-inference-time")


def service_of(*models: Any) -> Iterator[TestClient]:
    settings = ServeSettings.model_validate({"models": list(models), "engine": {"threads": 1, "tokenizers": 1}})
    service = Service.load(settings)
    with TestClient(build_app(service, settings), raise_server_exceptions=False) as client:
        yield client
    service.close()


@pytest.fixture(scope="module")
def prompted(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A sentence-transformers folder with prompts, served only for embeddings."""
    folder = tmp_path_factory.mktemp("prompted")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(mini / name, folder / name)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "query: ", "passage": "passage: "}})
    )
    yield from service_of({"model": str(folder), "name": "e", "tasks": ["embedding"]})


def test_headers_tell_tokens_and_times(http: httpx.Client) -> None:
    response = http.post("/embed", json={"inputs": TEXTS})
    assert int(response.headers["x-compute-tokens"]) == sum(
        len(row) for row in http.post("/tokenize", json={"inputs": TEXTS}).json()
    )
    assert all(int(response.headers[name]) >= 0 for name in TIMES)
    assert "x-truncated" not in response.headers


def test_cut_texts_are_told(http: httpx.Client) -> None:
    response = http.post("/embed", json={"inputs": ["a", LONG], "truncate": True})
    assert response.headers["x-truncated"] == "1"
    response = http.post("/tasks/text-classification", json={"inputs": [LONG, "a", LONG]})
    assert response.headers["x-truncated"] == "0,2"
    response = http.post("/predict", json={"inputs": [["a", LONG], ["b"], [LONG]], "truncate": True})
    assert response.headers["x-truncated"] == "0,2"


def test_long_texts_are_refused_unless_they_may_be_cut(http: httpx.Client) -> None:
    for path, body, field in (
        ("/embed", {"inputs": LONG}, "inputs"),
        ("/embed_all", {"inputs": ["a", LONG]}, "inputs.1"),
        ("/predict", {"inputs": [["a"], [LONG]]}, "inputs.1"),
        ("/rerank", {"query": "a", "texts": ["a", LONG]}, "texts.1"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", LONG]}}, "inputs.sentences.1"),
    ):
        response = http.post(path, json=body)
        assert response.status_code == 413
        named = "parameters.truncate" if path == "/similarity" else "truncate"
        assert response.json() == {
            "error": f"{field}: more than the 512 tokens that the model takes; with {named}: true it is cut",
            "error_type": "Validation",
        }
        options = {"truncate": True, "truncation_direction": "LEFT"}
        again = {**body, "parameters": options} if path == "/similarity" else {**body, **options}
        assert http.post(path, json=again).status_code == 200


def test_predict_one_pair_and_several(http: httpx.Client, server: Running) -> None:
    classify = pipeline("text-classification", "embedded:mini", top_k=None)
    single, pair = classify(TEXTS[0])[0], classify([{"text": TEXTS[0], "text_pair": TEXTS[1]}])[0]
    for given, wanted in (
        (TEXTS[0], single),
        (TEXTS[:1], single),
        (TEXTS, pair),
        ([[TEXTS[0]], TEXTS], [single, pair]),
    ):
        assert http.post("/predict", json={"inputs": given}).json() == rounded(wanted)
    assert http.post("/predict", json={"inputs": ["a", "b", "c"]}).status_code == 422


def test_models_by_query(http: httpx.Client) -> None:
    assert {one["label"] for one in http.post("/predict?model=script", json={"inputs": "a"}).json()} >= {"Latin"}
    response = http.post("/embed?model=script", json={"inputs": "a"})
    assert (response.status_code, response.json()["error_type"]) == (404, "NotFound")
    assert "text-classification" in response.json()["error"]
    assert http.get("/info?model=nobody").status_code == 404


def test_info_lists_all_that_is_there(http: httpx.Client, server: Running) -> None:
    info = http.get("/info").json()
    assert [(one["task"], one["model"]) for one in info["tasks"]] == [
        (task, model.name) for model in server.service.models.values() for task in model.tasks
    ]
    assert http.get("/info?model=entailment").json()["model_type"]["zero-shot-classification"]["label2id"]
    assert http.get("/tasks/rerank/info").json()["model_type"].keys() == {"reranker"}
    assert http.get("/tasks/nothing/info").status_code == 404


def test_no_sparse_vectors(http: httpx.Client) -> None:
    response = http.post("/embed_sparse", json={"inputs": "a"})
    assert response.status_code == 404
    assert "task sparse is not one of this service" in response.json()["error"]


def test_prompts(prompted: TestClient) -> None:
    wanted = prompted.post("/embed", json={"inputs": ["query: a"]}).json()
    got = prompted.post("/embed", json={"inputs": ["a"], "prompt_name": "query"}).json()
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    response = prompted.post("/tokenize", json={"inputs": "a", "prompt_name": "nobody"})
    assert response.json()["error"] == (
        'prompt_name: the model has no such prompt. Available prompts: ["query", "passage"]'
    )
    ids = [[token["id"] for token in row] for row in prompted.post("/tokenize", json={"inputs": ["query: a"]}).json()]
    tokens = prompted.post("/tokenize", json={"inputs": "a", "prompt_name": "query"}).json()
    assert [[token["id"] for token in row] for row in tokens] == ids
    assert prompted.get("/info").json()["tasks"][0]["prompts"] == ["query", "passage"]


def test_similarity_of_a_model_served_for_embeddings_alone(prompted: TestClient) -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": TEXTS}, "parameters": {"prompt_name": "query"}}
    pairs = [{"text": "query: a", "text_pair": f"query: {text}"} for text in TEXTS]
    wanted = pipeline("sentence-similarity", "embedded:mini")(pairs)
    assert prompted.post("/similarity", json=body).json() == pytest.approx(wanted, abs=1e-6)
    assert prompted.post("/tasks/sentence-similarity", json=body).json() == pytest.approx(wanted, abs=1e-6)


def test_a_long_sentence_is_named_alike_whichever_task_is_served(prompted: TestClient, http: httpx.Client) -> None:
    body: dict[str, Any] = {"inputs": {"source_sentence": "a", "sentences": ["b", "b", LONG]}}
    for client in (prompted, http):
        response = client.post("/similarity", json=body)
        assert (response.status_code, response.json()["error"].split(": ")[0]) == (413, "inputs.sentences.2")
        cut = client.post("/similarity", json={**body, "parameters": {"truncate": True}})
        assert (cut.status_code, cut.headers["x-truncated"]) == (200, "2")


def test_tasks_that_are_not_served(prompted: TestClient) -> None:
    response = prompted.post("/tasks/fill-mask", json={"inputs": "a <mask>"})
    assert response.status_code == 404
    assert "has: embedding" in response.json()["error"]
    assert "/tasks/fill-mask" not in prompted.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("task", ["text-classification", "rerank", "fill-mask"])
def test_first_task_at_the_root(task: str) -> None:
    head = {"text-classification": "script", "rerank": "relevance", "fill-mask": "masked"}[task]
    for client in service_of({"model": f"embedded:mini/heads/{head}", "tasks": [task]}):
        if task == "rerank":
            body: Any = {"query": "a", "texts": TEXTS}
            assert client.post("/", json=body).json() == client.post("/rerank", json=body).json()
        elif task == "text-classification":
            assert client.post("/", json={"inputs": "a"}).json() == client.post("/predict", json={"inputs": "a"}).json()
            body = {"inputs": "a", "parameters": {"top_k": 2}}
            assert client.post("/", json=body).json() == client.post(f"/tasks/{task}", json=body).json()
        else:
            body = {"inputs": "a <mask>", "parameters": {"top_k": 2}}
            assert client.post("/", json=body).json() == client.post(f"/tasks/{task}", json=body).json()
        assert "/" in client.get("/openapi.json").json()["paths"]


def rounded(value: Any) -> Any:
    """For comparison of scores that were computed in other batches."""
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return {"label": value["label"], "score": pytest.approx(value["score"], abs=1e-6)}
