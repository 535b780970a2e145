"""Ray that does not start, as on a machine that is too busy, is one line for a job and for a service."""

import os

import pytest
import ray

from xlmr_ray import UserError
from xlmr_ray.batch.cluster import connected
from xlmr_ray.serve.launch import serve_on_cluster, serve_on_own
from xlmr_ray.serve.settings import ServeSettings

SAID = "The current node timed out during startup. This could happen because the GCS is overloaded.\nmore"


@pytest.fixture
def too_busy(monkeypatch):
    def init(**_):
        raise Exception(SAID)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_job(too_busy):
    with pytest.raises(UserError, match=r"^cluster\.address local: no Ray cluster there: The current node") as error:
        connected("auto").__enter__()
    assert "\n" not in str(error.value)


def test_a_service(too_busy, monkeypatch):
    settings = ServeSettings.model_validate(
        {"models": [{"model": "embedded:mini", "tasks": ["embedding"]}], "http": {"port": 0}}
    )
    before = set(os.environ)
    with pytest.raises(UserError, match=r"^this machine: no Ray cluster there: The current node"):
        serve_on_own(settings, lambda: settings, print)
    assert not [name for name in os.environ if name.startswith("XLMR_RAY_") and name not in before]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS 127\.0\.0\.1:1: no Ray cluster there: The current node"):
        serve_on_cluster(settings, lambda: settings, print)


@pytest.mark.parametrize(
    "cause",
    [
        ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken"),
        # As Ray 2.60 says it of a head that was started by `ray start`.
        RuntimeError(
            "Failed to connect to GCS. Last connection error: … ray.exceptions.AuthenticationError: RPC error"
        ),
    ],
)
def test_a_cluster_with_a_token_says_so(monkeypatch, cause):
    def init(**_):
        try:
            raise cause
        except Exception as error:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.5:6379") from error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="takes only who has its token: set RAY_AUTH_MODE=token, and RAY_AUTH"):
        connected("ray://10.0.0.5:10001").__enter__()
