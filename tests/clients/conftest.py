"""Clients as they come from PyPI, against a real HTTP server. What they know is taken from `pipeline()`."""

import pytest

from tests.serve.server import Running
from xlmr_ray import pipeline

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "人人生而自由"]
QUERY = "Who may go to school?"
DOCUMENTS = ["No one shall be held in slavery.", "Everyone has the right to education.", "Education shall be free."]


@pytest.fixture
def url(server: Running) -> str:
    return server.url


@pytest.fixture(scope="session")
def vectors(server: Running) -> list[list[float]]:
    """Of `TEXTS`, of length 1."""
    return [vector.tolist() for vector in pipeline("embedding", "embedded:mini", normalize=True)(TEXTS)]


@pytest.fixture(scope="session")
def relevance(server: Running) -> list[float]:
    """Of `DOCUMENTS` for `QUERY`."""
    rerank = pipeline("rerank", server.source("relevance"))
    return rerank([{"text": QUERY, "text_pair": document} for document in DOCUMENTS])
