"""Requests made from the OpenAPI document, right and wrong ones: no 5xx, and no answer that it does not announce."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.protocols.write_examples import REQUESTS
from tests.serve.server import Running

PATHS = [route.partition(" ")[2] for route in REQUESTS] + ["/embed_sparse", "/v1/multi-vector"]
GETS = ["/info", "/tasks/{task}/info", "/v1/models", "/v1/models/{model}"]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="session")
def document(server: Running) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def fuzz(operation: Any, mode: GenerationMode, examples: int) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    ask()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", GenerationMode)
def test_random_bodies(document: Any, path: str, mode: GenerationMode) -> None:
    fuzz(document[path]["POST"], mode, 6)


@pytest.mark.parametrize("path", GETS)
def test_random_queries(document: Any, path: str) -> None:
    fuzz(document[path]["GET"], GenerationMode.POSITIVE, 10)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", GenerationMode)
def test_many_random_bodies(document: Any, path: str, mode: GenerationMode) -> None:
    fuzz(document[path]["POST"], mode, 100)
