"""The service under Ray Serve, over HTTP: what it takes, what changes without a pause, a replica that is killed."""

import re
import socket
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("nodes", "content", "cores"),
    [
        ([], {}, 1),  # printed, where no cluster is
        ([2], {}, 2),
        ([1, 16, 4], {}, 16),
        ([16], {"replicas": {"max": 3}}, 5),
        ([2], {"replicas": {"max": 8}}, 1),
        ([16], {"engine": {"threads": 4}}, 4),
        ([16], {"engine": {"threads": 4}, "replicas": {"cpus": 0.5}}, 0.5),
    ],
)
def test_cores_of_a_replica(monkeypatch, nodes, content, cores):
    import ray

    from xlmr_ray.serve.deployment import cpus_of

    machines = [{"Alive": True, "Resources": {"CPU": float(n)}} for n in nodes]
    gone = [{"Alive": False, "Resources": {"CPU": 64.0}}, {"Alive": True, "Resources": {}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(nodes))
    monkeypatch.setattr(ray, "nodes", lambda: machines + gone)
    assert cpus_of(ServeSettings.model_validate({"models": ["embedded:mini"], **content})) == cores


def test_threads_are_the_replicas_cores():
    from xlmr_ray.serve.deployment import with_threads

    settings = ServeSettings.model_validate({"models": ["embedded:mini"]})
    assert (with_threads(settings, 8).engine.threads, with_threads(settings, 8).engine.tokenizers) == (8, 4)
    assert (with_threads(settings, 1).engine.threads, with_threads(settings, 1).engine.tokenizers) == (1, 1)
    named = ServeSettings.model_validate({"models": ["embedded:mini"], "engine": {"threads": 3, "tokenizers": 6}})
    assert with_threads(named, 8) == named


def test_what_is_printed_names_no_machine():
    from xlmr_ray.serve.launch import serve_config

    (application,) = serve_config(ServeSettings.model_validate({"models": ["embedded:mini"]}))["applications"]
    assert application["args"] == {}
    assert "ray_actor_options" not in application["deployments"][0]


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


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_as_many_replicas_as_the_load_wants(ray_session):
    """Two share the machine, each with a half of its cores; their numbers come through Ray's own exporter."""
    import ray
    from ray import serve

    from xlmr_ray.serve.launch import deploy, free_port

    port = free_port("127.0.0.1", 0)
    url, stopped = f"http://127.0.0.1:{port}", threading.Event()
    replicas = {"max": 2, "target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 3}
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    clients = [Load(url) for _ in range(16)]
    try:
        before = answered().keys()
        deploy(ServeSettings.model_validate({"models": CONTENT["models"], "replicas": replicas}), stopped)
        assert running() == 1
        half = max(1, int(ray.cluster_resources()["CPU"]) // 2)
        assert httpx.get(f"{url}/info").json()["tokenization_workers"] == min(4, half)

        for client in clients:
            client.start()
        until(lambda: len(answered().keys() - before) == 2)
        for client in clients[1:]:
            client.ended.set()
        until(lambda: running() == 1, 180)
        assert clients[0].is_alive()
        clients[0].ended.set()
        for client in clients:
            client.join(60)
        assert all(client.codes.keys() == {200} for client in clients), [client.codes for client in clients]
    finally:
        for client in clients:
            client.ended.set()
        serve.shutdown()


def running():
    from ray import serve

    return serve.status().applications["xlmr-ray"].deployments["Service"].replica_states.get("RUNNING", 0)


def answered():
    """The requests that each replica has answered, as Ray's exporter tells."""
    import ray

    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    labelled = 'ray_xlmr_ray_serve_requests_total{([^}]*route="/embed"[^}]*status="200"[^}]*)} ([0-9.e+]+)'
    found = re.findall(labelled, text)
    return {re.search('replica="([^"]+)"', labels)[1]: float(value) for labels, value in found}


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_what_is_deployed_is_read_without_torch():
    """Ray Serve does so in two processes, before any replica starts."""
    code = "import sys, xlmr_ray.serve.deployment; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
