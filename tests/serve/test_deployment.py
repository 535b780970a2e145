"""The service under Ray Serve, over HTTP: what it takes, what changes without a pause, a replica that is killed."""

import socket
import threading
import time
from collections import Counter

import httpx
import psutil
import pytest
import yaml

from xlmr_ray.serve.settings import ServeSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*extra keyword arguments on `Field`:DeprecationWarning")

CONTENT = {
    "models": [{"model": "embedded:mini", "tasks": ["text-classification", "embedding"]}],
    "engine": {"threads": 1, "tokenizers": 1},
    "replicas": {"cpus": 0.5, "health_check_period_s": 1.0},
}


def test_ray_serve_takes_the_configuration_as_it_is():
    from ray.serve.schema import ServeDeploySchema

    from xlmr_ray.serve.launch import serve_config

    content = yaml.safe_load(yaml.safe_dump(serve_config(ServeSettings.model_validate(CONTENT))))
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == "xlmr_ray.serve.deployment:application"
    assert application.args == {key: CONTENT[key] for key in ("replicas", "engine")}
    assert application.deployments[0].user_config["models"] == [
        {"model": "embedded:mini", "tasks": [{"task": "text-classification"}, {"task": "embedding"}]}
    ]


def test_a_port_that_is_taken():
    from xlmr_ray.errors import UserError
    from xlmr_ray.serve.launch import free_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} cannot be had: Address already in use"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0


class Load(threading.Thread):
    """Clients that ask without end; what they were answered, and how long the slowest took."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.codes, self.slowest, self.ended = url, Counter(), 0.0, threading.Event()
        self.last_good = 0.0

    def run(self):
        with httpx.Client(timeout=60) as client:
            while not self.ended.is_set():
                began = time.monotonic()
                try:
                    code = client.post(
                        f"{self.url}/embed", json={"inputs": "Everyone has the right to life."}
                    ).status_code
                except httpx.HTTPError as error:
                    code = type(error).__name__
                self.codes[code] += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
                if code == 200:
                    self.last_good = time.monotonic()
                else:
                    time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_changed_in_place_and_killed_under_load(ray_session):
    import ray
    from ray import serve

    from xlmr_ray.serve.launch import deploy, free_port

    port = free_port("127.0.0.1", 0)
    url, stopped = f"http://127.0.0.1:{port}", threading.Event()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        deploy(ServeSettings.model_validate(CONTENT), stopped)
        assert httpx.get(f"{url}/ready").json() == {"status": "ready"}

        clients = [Load(url) for _ in range(4)]
        for client in clients:
            client.start()
        changed = {"models": [{"model": "embedded:mini", "name": "next"}], "limits": {"inputs": 2}, "version": "two"}
        deploy(
            ServeSettings.model_validate({**CONTENT, **changed, "models": [{**CONTENT["models"][0], "name": "next"}]}),
            stopped,
        )
        until(lambda: httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "next")
        assert httpx.post(f"{url}/embed", json={"inputs": ["a"] * 3}).status_code == 413
        time.sleep(1)
        assert all(client.codes.keys() == {200} for client in clients), [client.codes for client in clients]

        # Of the cluster that these tests have started, which are its children.
        processes = psutil.Process().children(recursive=True)
        (replica,) = [process for process in processes if "ServeReplica" in " ".join(process.cmdline())]
        began = time.monotonic()
        replica.kill()
        until(lambda: all(client.last_good > began + 1 for client in clients))
        for client in clients:
            client.ended.set()
            client.join(60)
        failed = sum(count for client in clients for code, count in client.codes.items() if code != 200)
        # Those that were in flight, and those that came before the proxy had seen it.
        assert failed <= 40, [client.codes for client in clients]
    finally:
        serve.shutdown()
        assert ray.is_initialized()


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)
