import copy
import secrets

import pytest

from tests.faulty_proxy import running_proxy
from tests.seaweed import ACCESS_KEY, SECRET_KEY
from xlmr_ray.batch.store.open import open_store


@pytest.fixture(scope="session")
def connected(seaweed):
    """One connection for all tests: making botocore's client takes longer than most of them."""
    store = open_store(seaweed.new_folder(), options=seaweed.options)
    store.put("k", b"")
    with store.open("k"):
        pass
    return store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """An empty store: a folder, or a folder of a bucket on a real server."""
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    folder = copy.copy(request.getfixturevalue("connected"))
    folder.prefix = f"{tmp_path.name}-{secrets.token_hex(4)}/"
    return folder


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
