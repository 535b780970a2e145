"""Vectors in 8 bits from a service: ranges are of one kind of vectors, and requests of the other kind are refused."""

import base64
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sentence_transformers.util.quantization import quantize_embeddings

from xlmr_ray import pipeline
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.tasks.vector_precision import write_ranges

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "人人生而自由"]


@pytest.fixture(scope="module", params=[True, False], ids=["normalized", "not normalized"])
def served(request, tmp_path_factory):
    """A service of int8 vectors, its ranges, the float vectors, and whether both are normalized."""
    floats = np.stack(pipeline("embedding", "embedded:mini", device="cpu", normalize=request.param)(TEXTS))
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    write_ranges(path, floats[:2], normalized=request.param)
    task = {"task": "embedding", "normalize": request.param, "precision": "int8", "ranges": str(path)}
    settings = ServeSettings.model_validate(
        {"models": [{"model": "embedded:mini", "tasks": [task]}], "engine": {"threads": 1, "tokenizers": 1}}
    )
    service = Service.load(settings)
    content = json.loads(path.read_text())
    path.unlink()  # requests with options of their own have what was read at the start
    with TestClient(build_app(service, settings), raise_server_exceptions=False) as client:
        yield client, np.stack([content["min"], content["max"]]), floats, request.param
    service.close()


def test_requests_of_the_ranges_kind_get_their_codes(served):
    client, ranges, floats, normalized = served
    expected = quantize_embeddings(floats, "int8", ranges=ranges)
    body = {"inputs": TEXTS, "normalize": normalized}
    assert np.array_equal(client.post("/embed", json=body).json(), expected)


def test_requests_of_the_other_kind_are_refused(served):
    """`/v1/embeddings` always normalizes, and `/embed` where the request does not say."""
    client, _, _, normalized = served
    others = [("/embed", {"inputs": TEXTS, "normalize": not normalized})]
    if not normalized:
        others += [("/embed", {"inputs": TEXTS}), ("/v1/embeddings", {"input": TEXTS, "embedding_type": "int8"})]
    for path, body in others:
        response = client.post(path, json=body)
        assert response.status_code == 422, path
        assert "ranges are of vectors" in response.text
        assert "normalize" in response.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openais_form_has_floats_unless_it_names_codes(served, path):
    """Its clients ask for base64, and would compute with the codes as if they were the numbers."""
    client, ranges, floats, normalized = served
    unit = floats / np.linalg.norm(floats, axis=1, keepdims=True)
    for named in ({}, {"embedding_type": "float"}):
        body = {"input": TEXTS, **named}
        listed = [one["embedding"] for one in client.post(path, json=body).json()["data"]]
        assert np.abs(np.array(listed) - unit).max() < 1e-6
        coded = client.post(path, json={**body, "encoding_format": "base64"}).json()["data"]
        for one, expected in zip(coded, unit, strict=True):
            assert np.abs(np.frombuffer(base64.b64decode(one["embedding"]), "<f4") - expected).max() < 1e-6
    if normalized:
        codes = client.post(path, json={"input": TEXTS, "embedding_type": "int8"}).json()["data"]
        assert np.array_equal([one["embedding"] for one in codes], quantize_embeddings(floats, "int8", ranges=ranges))


def test_similarity_is_that_of_full_precision(served):
    client, _, floats, _ = served
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    floats = floats.astype(np.float64) / np.linalg.norm(floats.astype(np.float64), axis=1, keepdims=True)
    assert np.abs(client.post("/similarity", json=body).json() - floats[1:] @ floats[0]).max() < 1e-6
