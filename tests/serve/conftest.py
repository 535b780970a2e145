from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.front import ONE, TWO, Served, two_services
from tests.serve.server import MODELS, save_causal
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings


@pytest.fixture(scope="package")
def services() -> Iterator[tuple[Served, Served]]:
    """Two of them behind their fronts."""
    with two_services(ONE, TWO) as both:
        yield both


@pytest.fixture
def one(services: tuple[Served, Served]) -> Served:
    return services[0]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Every task, in process, with batches small enough that requests share and split them."""
    causal: Path = save_causal(tmp_path_factory.mktemp("causal") / "model")
    models = [*MODELS, {"model": str(causal), "name": "causal", "tasks": ["text-generation", "perplexity"]}]
    engine = {"threads": 1, "tokenizers": 2, "max_tokens": 512}
    limits = {"queue_tokens": 1_000_000}
    made = Service.load(ServeSettings.model_validate({"models": models, "engine": engine, "limits": limits}))
    yield made
    made.close()
