"""The OpenAPI document: every route tells what it takes, answers and refuses, and its examples are what it does."""

import uuid
from typing import Any

import httpx
import pytest

from tests.serve.protocols.write_examples import REQUESTS
from xlmr_ray.serve.protocols.documented import examples

# By the checkpoints of the examples, and without a folder for files.
UNSERVED = {"/embed_sparse", "/v1/multi-vector", "/v1/files", "/v1/batches", "/v1/batches/{name}/cancel"}
NAMED = [(route, name) for route, named in examples().items() for name in named]


@pytest.mark.parametrize(("route", "name"), NAMED)
def test_example_is_true(http: httpx.Client, route: str, name: str) -> None:
    method, _, path = route.partition(" ")
    example = examples()[route][name]
    response = http.request(method, path, json=example["request"])
    assert response.status_code == 200, response.text
    assert_same(response.json(), example["response"])


def test_examples_are_those_that_are_written() -> None:
    assert {route: {name: one["request"] for name, one in named.items()} for route, named in examples().items()} == (
        REQUESTS
    )


def test_every_route_is_documented(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert {f"POST {path}" for path in posts} == set(REQUESTS) | {f"POST {path}" for path in UNSERVED}
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            assert described["summary"], path
            content = described["responses"]["200"]["content"]
            if method == "post" and path not in UNSERVED:
                assert content["application/json"]["examples"]
                assert content["application/json"]["schema"]
                body = described["requestBody"]
                assert body["required"]
                assert (
                    body["content"]["application/json"]["examples"].keys()
                    == content["application/json"]["examples"].keys()
                )
                assert {"400", "401", "404", "408", "413", "422", "424", "429", "503"} <= described["responses"].keys()


def test_bodies_are_published_by_the_names_of_tasks(http: httpx.Client) -> None:
    """Generated clients call their classes so."""
    names = http.get("/openapi.json").json()["components"]["schemas"]
    assert {"Embedding", "FillMask", "MultiVector", "QuestionAnswering", "Rerank", "TextClassification"} <= names.keys()
    assert not [name for name in names if name.endswith("Body")]


def assert_same(got: Any, wanted: Any) -> None:
    """Numbers to 1e-4, for CPUs that round differently; ids that are made up for each answer, by their form."""
    if isinstance(wanted, dict):
        assert got.keys() == wanted.keys()
        for key, value in wanted.items():
            if key == "id" and isinstance(value, str):
                assert uuid.UUID(got[key])
            elif key == "created":
                assert got[key] >= value
            elif key == "embedding" and isinstance(value, str):
                assert len(got[key]) == len(value)
            else:
                assert_same(got[key], value)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    else:
        assert got == wanted
