import pytest

from tests.faulty_proxy import running_proxy
from tests.seaweed import ACCESS_KEY, SECRET_KEY, seaweed
from xlmr_ray.batch.store import open_store

__all__ = ["seaweed"]


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """An empty store: a folder, or a folder of a bucket on a real server."""
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    server = request.getfixturevalue("seaweed")
    return open_store(server.new_folder(), options=server.options)


@pytest.fixture
def local(tmp_path):
    return open_store(str(tmp_path / "out"))


@pytest.fixture
def proxy(seaweed):
    with running_proxy(seaweed.endpoint) as running:
        yield running


@pytest.fixture
def behind_proxy(seaweed, proxy):
    """A store whose every request goes through `proxy`."""
    options = {"endpoint_url": proxy.endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY}
    return open_store(seaweed.new_folder(), options=options, deadline=20.0)
