"""A job and the service on Ray nodes with networks and host names of their own (Linux namespaces), as on machines of
their own, one of which is killed. Root and Debian's iproute2 are needed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import planned_shards
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store

BIN = Path(sys.executable).parent
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # as the manifests have it
# How long `ray start` waits for its raylet: a machine that also does other things takes longer than Ray's 10 s.
PATIENT = {"RAY_raylet_start_wait_time_s": "120"}
# A node's door to the service takes replicas of all nodes, rather than its own as long as these have room.
EVERYWHERE = {"RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="network namespaces want root and iproute2"),
]


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


def folder_of(network):
    """Of Ray. In /tmp itself, because Unix sockets want short paths."""
    return Path("/tmp") / network


def inside(host, *command, **environment):
    """A process on the host: its network, its name, and Ray's folder as its own, for nodes that share one can take each
    other's sockets.
    """
    folder = folder_of(host.partition("-")[0])
    own = folder / host
    own.mkdir(parents=True, exist_ok=True)
    script = f'hostname "$0" && mount --bind {own} {folder} && exec "$@"'
    named = ["unshare", "--uts", "--mount", "sh", "-c", script, host]
    settings = {
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        **PATIENT,
        **EVERYWHERE,
        **TOKEN,
    }
    return subprocess.Popen(
        ["ip", "netns", "exec", host, *named, *map(str, command)],
        env={**os.environ, **settings, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process):
    """With all that it started, at once and without a word."""
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
    """A head with the GCS, and workers, of two cores each. Yields its address, its host, and the processes by host."""
    network = Network()
    folder = folder_of(network.name)
    nodes = {}
    common = ["--block", "--disable-usage-stats", "--object-store-memory=100000000"]
    try:
        head = network.host()
        start = ["start", "--head", "--node-ip-address=10.77.0.1", "--port=6379", "--num-cpus=2"]
        nodes[head] = inside(head, BIN / "ray", *start, "--include-dashboard=false", f"--temp-dir={folder}", *common)
        # Workers are turned away until the head itself is registered.
        any("Ray runtime started" in line for line in nodes[head].stdout)
        for _ in range(workers):
            host = network.host()
            address = f"--node-ip-address=10.77.0.{network.hosts}"
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


# Shards on their way from an encoder to the writer that commits them, at most.
IN_FLIGHT = 24


def records(out):
    store = open_store(str(out))
    return [record for run in store.folders("_runs/") for record in committed(store, run)]


def hosts(out):
    """How many shards each host has committed so far."""
    return Counter(record.stats.host for record in records(out))


def rows(out):
    table = pa.concat_tables(pq.read_table(file) for file in result_files(str(out)))
    return table.sort_by([("source", "ascending"), ("row", "ascending")])


def test_a_job_goes_on_when_a_node_is_gone(udhr, tmp_path):
    out, clean = tmp_path / "out", tmp_path / "clean"
    command = [BIN / "xlmr-ray", "run", "text-classification", "--input", udhr, "--set", "cluster.shard_rows=4"]
    with cluster(workers=2) as (address, head, nodes):
        driver = inside(head, *command, "--output", out, RAY_ADDRESS=address)
        until(lambda: driver.poll() is not None or (out.exists() and len(hosts(out)) == 3))
        assert driver.poll() is None, driver.stdout.read()
        victim = list(nodes)[1]
        kill(nodes[victim])
        killed = time.time()
        before = hosts(out)
        said, _ = driver.communicate(timeout=500)
        assert driver.returncode == 0, said
    after = hosts(out)
    store = open_store(str(out))
    planned = sum(1 for _ in planned_shards(store, current(store).run_id))
    print(
        f"{before.total()} of {planned} shards when a node was killed, by host {dict(before)}; at the end {dict(after)}"
    )
    # It was at work, much was left to do, and the others did it.
    assert set(after) == set(nodes)
    assert before.total() < planned * 2 / 3
    # A shard that it had scored may be written by another after it went.
    assert 0 < before[victim] <= after[victim] <= before[victim] + IN_FLIGHT
    assert all(after[host] > before[host] for host in nodes if host != victim)
    assert max(record.committed_at for record in records(out) if record.stats.host == victim) < killed + 30
    report = verify(store)
    assert report.ok
    assert (report.rows_in, report.rows_ok) == (2850, 2850)
    alone = subprocess.run([*map(str, command), "--output", clean], capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    assert rows(out).equals(rows(clean))


# Asks for as many seconds, four requests at a time; prints when each ended (epoch seconds) and how: a status, or 0.
ASK = """
import concurrent.futures, http.client, json, sys, time
seconds, host = float(sys.argv[1]), sys.argv[2]
body = json.dumps({"inputs": "Alle Menschen sind frei und gleich an Würde und Rechten geboren."}).encode()
end = time.monotonic() + seconds
def ask():
    try:
        connection = http.client.HTTPConnection(host, 8000, timeout=30)
        connection.request("POST", "/tasks/text-classification", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return 0
def again(_):
    ended = []
    while not ended or time.monotonic() < end:
        status = ask()
        ended.append((time.time(), status))
    return ended
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(json.dumps(sum(pool.map(again, range(4)), [])))
"""

# Prints the requests that each node's replicas ended, by the node's address.
COUNT = """
import json, re, sys, urllib.request
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
counts = {}
for node in ray.nodes():
    if node["Alive"]:
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        found = re.findall(r"^ray_xlmr_ray_serve_requests_total\\{.*\\} ([0-9.e+]+)$", text, re.MULTILINE)
        counts[node["NodeManagerAddress"]] = sum(map(float, found))
print(json.dumps(counts))
"""


def told(process, timeout=120):
    said, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, said
    return json.loads(said.splitlines()[-1])


def test_the_service_answers_when_a_node_is_gone(tmp_path):
    settings = tmp_path / "serve.yaml"
    settings.write_text(json.dumps({"models": ["embedded:mini"], "replicas": {"min": 3, "max": 3, "cpus": 1},
                                    "http": {"host": "0.0.0.0", "port": 8000}}))  # fmt: skip
    with cluster(workers=1) as (address, head, nodes):
        service = inside(head, BIN / "xlmr-ray", "serve", settings, RAY_ADDRESS=address)

        def asked(seconds, host="10.77.0.1"):
            return inside(head, sys.executable, "-c", ASK, seconds, host)

        def answering(host):
            return all(status == 200 for _, status in told(asked(0, host)))

        until(lambda: service.poll() is not None or (answering("10.77.0.1") and answering("10.77.0.2")))
        assert service.poll() is None, service.stdout.read()
        before = told(asked(5))

        def counts():
            """Ray exports what its actors have counted every ten seconds."""
            counted = told(inside(head, sys.executable, "-c", COUNT, address))
            return counted if min(counted.values()) > 0 else None

        counted = until(counts)
        through = asked(40)
        time.sleep(10)
        kill(nodes[list(nodes)[1]])
        killed = time.time()
        during = told(through)
        after = told(asked(5))
        kill(service)
    assert set(counted) == {"10.77.0.1", "10.77.0.2"}
    assert {status for _, status in before} == {200}
    failed = [(round(at - killed, 1), status) for at, status in during if status != 200]
    late = [status for at, status in during if at > killed]
    print(
        f"requests ended by the nodes' replicas {counted}; {len(during)} while a node was killed, {len(late)} of them "
        f"later, {len(failed)} failed: {failed}"
    )
    # What was on its way to the node that went, and what was sent there until the other node knew.
    assert len(late) > 50
    assert len(failed) <= 8
    assert {status for _, status in after} == {200}
