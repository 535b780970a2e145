from collections.abc import Iterator

import httpx
import pytest

from tests.serve.server import Running


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
