"""Sparse, multiple and small vectors, and prompts that the settings name, by the routes of other servers' clients:
what `pipeline()` gives, to the last bit, alone and beside others.
"""

import base64

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sentence_transformers.util.quantization import quantize_embeddings

from tests.tasks.m3 import save_m3
from xlmr_ray import pipeline
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.tasks.vector_precision import write_ranges

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "人人生而自由", "a a b", "right " * 10]
PROMPTS = {"query": "query: ", "passage": "passage: "}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A small bge-m3 in a service, its folder, and the ranges that its settings name."""
    folder = tmp_path_factory.mktemp("m3")
    model = str(save_m3(folder))
    floats = np.stack(pipeline("embedding", model, device="cpu")(TEXTS))
    write_ranges(folder / "ranges.json", floats, normalized=True)
    embedding = {"task": "embedding", "ranges": str(folder / "ranges.json"), "prompts": PROMPTS}
    tasks = [embedding, "sparse", "multi-vector", "feature-extraction"]
    settings = ServeSettings.model_validate(
        {"models": [{"model": model, "name": "m3", "tasks": tasks}], "engine": {"threads": 1, "tokenizers": 1}}
    )
    service = Service.load(settings)
    with TestClient(build_app(service, settings), raise_server_exceptions=False) as client:
        yield client, model, np.stack([floats.min(0), floats.max(0)])
    service.close()


def answered(client, path, body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def numbers(answer):
    """The vectors of an answer in OpenAI's form, as they were before they became JSON."""
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def test_sparse_vectors_in_the_form_of_text_embeddings_inference(served):
    client, model, _ = served
    pipe = pipeline("sparse", model, device="cpu")
    wanted = [[(one, np.float32(weight)) for one, weight in text.items()] for text in pipe(TEXTS)]
    together = answered(client, "/embed_sparse", {"inputs": TEXTS})
    alone = [answered(client, "/embed_sparse", {"inputs": text})[0] for text in TEXTS]
    assert together == alone
    assert [[(one["index"], np.float32(one["value"])) for one in text] for text in together] == wanted
    (prompted,) = answered(client, "/embed_sparse", {"inputs": TEXTS[0], "prompt_name": "query"})
    assert {one["index"] for one in prompted} == pipe("query: " + TEXTS[0]).keys()
    assert client.post("/embed_sparse", json={"inputs": ["a", "right " * 70]}).status_code == 413
    cut = client.post("/embed_sparse", json={"inputs": ["a", "right " * 70], "truncate": True})
    assert (cut.status_code, cut.headers["x-truncated"]) == (200, "1")


def test_multiple_vectors_in_the_form_of_vllm(served):
    client, model, _ = served
    wanted = pipeline("multi-vector", model, device="cpu")(TEXTS)
    for body in ({}, {"task": "token_embed"}):
        answer = answered(client, "/pooling", {"model": "m3", "input": TEXTS, **body})
        for one, expected in zip(answer["data"], wanted, strict=True):
            assert np.array_equal(np.array(one["data"], np.float32), expected)


@pytest.mark.parametrize("kind", ["document", "query"])
def test_multiple_vectors_in_the_form_of_jina(served, kind):
    """As its clients send them: text, or objects with a text; numbers, base64 or bits."""
    client, model, _ = served
    wanted = pipeline("multi-vector", model, device="cpu")(TEXTS)
    body = {"model": "m3", "input": TEXTS, "input_type": kind, "embedding_type": "float", "dimensions": 48}
    answer = answered(client, "/v1/multi-vector", body)
    assert (answer["object"], answer["model"], answer["usage"]["total_tokens"] > 0) == ("list", "m3", True)
    assert [one["index"] for one in answer["data"]] == list(range(len(TEXTS)))
    for one, expected in zip(answer["data"], wanted, strict=True):
        assert np.array_equal(np.array(one["embeddings"], np.float32), expected)
    objects = [{"id": str(index), "text": text} for index, text in enumerate(TEXTS)]
    several = answered(
        client, "/v1/multi-vector", {"input": objects, "embedding_type": ["float", "base64", "binary", "ubinary"]}
    )
    for one, expected in zip(several["data"], wanted, strict=True):
        found = one["embeddings"]
        assert np.array_equal(np.array(found["float"], np.float32), expected)
        assert np.array_equal([np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]], expected)
        for precision in ("binary", "ubinary"):
            assert np.array_equal(found[precision], quantize_embeddings(expected, precision))
    (alone,) = answered(client, "/v1/multi-vector", {"input": TEXTS[0], "encoding_format": "base64"})["data"]
    assert alone["embeddings"] == several["data"][0]["embeddings"]["base64"]


def test_dimensions_of_multiple_vectors(served):
    client, model, _ = served
    (found,) = answered(client, "/v1/multi-vector", {"input": [TEXTS[0]], "dimensions": 16})["data"]
    raw = pipeline("multi-vector", model, device="cpu", normalize=False)(TEXTS[0])[:, :16]
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(np.array(found["embeddings"]) - expected).max() < 1e-6
    mine = pipeline("multi-vector", model, device="cpu", dimensions=16)(TEXTS[0])
    assert np.array_equal(np.array(found["embeddings"], np.float32), mine)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({"input": []}, 400, "input: the list is empty, expected at least one"),
        ({"input": TEXTS[0], "dimensions": 49}, 422, "dimensions"),
        ({"input": ["a", "right " * 70], "truncate": False}, 413, "truncate: true"),
        ({"input": TEXTS[0], "embedding_type": "int8"}, 422, "embedding_type"),
        ({"input": TEXTS[0], "late_chunking": True}, 422, "late_chunking"),
    ],
)
def test_what_the_form_of_jina_refuses(served, body, status, detail):
    response = served[0].post("/v1/multi-vector", json=body)
    assert response.status_code == status, response.text
    assert detail in response.json()["detail"]


def test_long_texts_in_the_form_of_jina_are_cut(served):
    cut = served[0].post("/v1/multi-vector", json={"input": ["a", "right " * 70]})
    assert (cut.status_code, cut.headers["x-truncated"]) == (200, "1")


@pytest.mark.parametrize(("given", "prompt"), [("query", "query: "), ("passage", "passage: "), (None, "")])
def test_prompts_of_the_settings(served, given, prompt):
    """The checkpoint names none; clients choose by a prompt's name, or say what the text is."""
    client, model, _ = served
    wanted = np.stack(pipeline("embedding", model, device="cpu", prompt=prompt)(TEXTS))
    named = {} if given is None else {"prompt_name": given}
    kinds = {"query": ["query", "search_query"], "passage": ["passage", "document", "search_document"], None: []}[given]
    assert np.array_equal(np.array(answered(client, "/embed", {"inputs": TEXTS, **named}), np.float32), wanted)
    bodies = [named, *({"input_type": kind} for kind in kinds)]
    for body in bodies:
        assert np.array_equal(numbers(answered(client, "/v1/embeddings", {"input": TEXTS, **body})), wanted)
    for kind in kinds:
        if kind.startswith("search"):
            answer = answered(client, "/v2/embed", {"texts": TEXTS, "input_type": kind})
            assert np.array_equal(np.array(answer["embeddings"]["float"], np.float32), wanted)
    ids = [token["id"] for token in answered(client, "/tokenize", {"inputs": "a", **named})[0]]
    assert ids == pipeline("embedding", model, device="cpu").tokenizer(prompt + "a")["input_ids"]
    assert client.get("/info").json()["tasks"][0]["prompts"] == ["document", "query", "passage"]


def test_prompts_that_are_refused(served):
    client, _, _ = served
    for body, message in (
        ({"prompt_name": "title"}, "no such prompt"),
        ({"prompt_name": "query", "input_type": "query"}, "both say the prompt"),
        ({"input_type": "poem"}, "input_type"),
        ({"prompts": {"title": "title: "}}, "prompts"),
        ({"ranges": "/etc/hostname"}, "ranges"),
    ):
        response = client.post("/v1/embeddings", json={"input": "a", **body})
        assert (response.status_code, message in response.text) == (422, True), response.text
    response = client.post("/v2/embed", json={"texts": ["a"], "input_type": "clustering"})
    assert (response.status_code, "it has: document, query, passage" in response.text) == (422, True)


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_small_vectors_by_request(served, kind):
    client, model, ranges = served
    floats = np.stack(pipeline("embedding", model, device="cpu")(TEXTS))
    wanted = quantize_embeddings(floats, kind, ranges=ranges if kind.endswith("int8") else None)
    body = {"input": TEXTS, "embedding_type": kind}
    got = [one["embedding"] for one in answered(client, "/v1/embeddings", body)["data"]]
    assert np.array_equal(got, wanted)
    coded = answered(client, "/v1/embeddings", {**body, "encoding_format": "base64"})["data"]
    for one, expected in zip(coded, wanted, strict=True):  # the OpenAI client reads float32 whatever it asked for
        assert np.array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), expected)
    both = answered(client, "/v2/embed", {"texts": TEXTS, "embedding_types": [kind, "float"]})["embeddings"]
    assert np.array_equal(both[kind], wanted)
    assert np.array_equal(np.array(both["float"], np.float32), floats)
    assert np.array_equal(
        answered(client, "/v2/embed", {"texts": TEXTS, "embedding_types": [kind]})["embeddings"][kind], wanted
    )


def test_small_vectors_of_fewer_dimensions(served):
    """Bits of the first dimensions; for bytes, the ranges would be of other vectors."""
    client, model, _ = served
    floats = np.stack(pipeline("embedding", model, device="cpu", dimensions=16)(TEXTS))
    body = {"input": TEXTS, "dimensions": 16}
    got = answered(client, "/v1/embeddings", {**body, "embedding_type": "ubinary"})["data"]
    assert np.array_equal([one["embedding"] for one in got], quantize_embeddings(floats, "ubinary"))
    response = client.post("/v1/embeddings", json={**body, "embedding_type": "int8"})
    assert (response.status_code, "ranges: got 48 dimensions, expected 16" in response.text) == (422, True)
