"""A job and the service on Ray nodes in network namespaces of their own, as on machines of their own, one of which is
killed. Root and Debian's iproute2 are needed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from xlmr_ray.batch.results import result_files
from xlmr_ray.batch.store import open_store
from xlmr_ray.batch.verify import verify

BIN = Path(sys.executable).parent
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as the manifests have it
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces want root and iproute2"),
]
PATIENT = {"RAY_raylet_start_wait_time_s": "120"}


class Network:
    """Namespaces on one bridge; a host is a namespace, `10.77.0.N` its address."""

    def __init__(self):
        self.name = f"x{secrets.token_hex(2)}"
        self.hosts = 0
        ip("link", "add", self.name, "type", "bridge")
        ip("link", "set", self.name, "up")

    def host(self):
        self.hosts += 1
        name, link = f"{self.name}-{self.hosts}", f"{self.name}v{self.hosts}"
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", self.name, "up")
        ip("-n", name, "addr", "add", f"10.77.0.{self.hosts}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        # It leads nowhere: a raylet learns its own address by the route to the outside.
        ip("-n", name, "route", "add", "default", "via", "10.77.0.254", "dev", "eth0")
        return name

    def close(self):
        for number in range(1, self.hosts + 1):
            ip("netns", "del", f"{self.name}-{number}")
        ip("link", "del", self.name)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, timeout=30)


def inside(host, *command, **environment):
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *map(str, command)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", **PATIENT, **TOKEN, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process):
    """With all that it started, as when a machine loses its power."""
    try:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            os.kill(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@contextmanager
def cluster(workers):
    """A head with the GCS and a core, and workers with a core each. Yields address, head's host, processes by host."""
    network = Network()
    folder = Path("/tmp") / network.name  # Unix sockets want short paths
    nodes = {}
    common = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    try:
        head = network.host()
        start = ["start", "--head", "--node-ip-address=10.77.0.1", "--port=6379", "--num-cpus=2"]
        nodes[head] = inside(head, BIN / "ray", *start, "--include-dashboard=false", f"--temp-dir={folder}", *common)
        for _ in range(workers):
            host = network.host()
            address = f"--node-ip-address=10.77.0.{network.hosts}"
            time.sleep(8)
            start = ["start", "--address=10.77.0.1:6379", address, "--num-cpus=2"]
            nodes[host] = inside(host, BIN / "ray", *start, *common)
        joined(head, workers + 1, nodes)
        yield "10.77.0.1:6379", head, nodes
    finally:
        for process in nodes.values():
            kill(process)
        network.close()
        shutil.rmtree(folder, ignore_errors=True)


def joined(head, count, nodes):
    program = (
        "import ray, sys, time; ray.init(address='10.77.0.1:6379', logging_level='ERROR')\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.5)"
    )
    process = inside(head, sys.executable, "-c", program)
    try:
        code = process.wait(180)
    except subprocess.TimeoutExpired:
        code = None
    kill(process)
    if code != 0:
        for node in nodes.values():
            kill(node)
        said = [one.communicate(timeout=10)[0][-3000:] for one in (process, *nodes.values())]
        raise AssertionError("\n".join(said))


def until(found, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.3)
    raise AssertionError("waited in vain")


def test_a_job_goes_on_when_a_node_is_gone(udhr, tmp_path):
    out = tmp_path / "out"
    with cluster(workers=2) as (address, head, nodes):
        command = ["run", "text-classification", "--input", udhr]
        driver = inside(head, BIN / "xlmr-ray", *command, "--output", out, "--set", "cluster.shard_rows=8",
                        RAY_ADDRESS=address)  # fmt: skip
        until(lambda: len(list((out / "_runs").glob("*/shards/*.json"))) > 4 or driver.poll() is not None)
        assert driver.poll() is None, driver.stdout.read()
        kill(nodes[list(nodes)[1]])
        said, _ = driver.communicate(timeout=500)
        assert driver.returncode == 0, said
    report = verify(open_store(str(out)))
    assert report.ok
    assert (report.rows_in, report.rows_ok) == (2850, 2850)
    assert result_files(str(out))


def test_the_service_answers_when_a_node_is_gone(tmp_path):
    settings = tmp_path / "serve.yaml"
    settings.write_text(json.dumps({"models": ["embedded:mini"], "replicas": {"min": 3, "max": 3, "cpus": 1},
                                    "http": {"host": "0.0.0.0", "port": 8000}}))  # fmt: skip
    with cluster(workers=1) as (address, head, nodes):
        service = inside(head, BIN / "xlmr-ray", "serve", settings, RAY_ADDRESS=address)
        body = json.dumps({"inputs": "Alle Menschen sind frei und gleich an Würde und Rechten geboren."})
        url = "http://10.77.0.1:8000/tasks/text-classification"
        ask = ["curl", "-s", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]
        ask += ["-H", "content-type: application/json", "-d", body, url]

        def asked():
            return inside(head, *ask).communicate(timeout=60)[0]

        until(lambda: asked() == "200" or service.poll() is not None)
        assert service.poll() is None, service.stdout.read()
        before = [asked() for _ in range(20)]
        kill(nodes[list(nodes)[1]])
        after = [asked() for _ in range(60)]
        kill(service)
    assert before == ["200"] * 20
    # What was on its way to the node that went, and no more.
    failed = [code for code in after if code != "200"]
    print(f"60 requests after a node was killed: {len(failed)} failed {failed}")
    assert len(failed) <= 5
    assert after[-20:] == ["200"] * 20
