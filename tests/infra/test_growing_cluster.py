"""A job on a cluster that grows from no machine and shrinks again: Ray's own autoscaler, with machines that are only
processes. One that is killed costs its shards in flight.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store

PORT = 6379  # the only one that Ray's provider of such machines knows
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MACHINE = {"resources": {"CPU": 2, "object_store_memory": 200 << 20}, "node_config": {}, "max_workers": 3}
# What the provider's own example file has; the wheel does not bring it.
CONFIG = {
    "cluster_name": "growing",
    "max_workers": 3,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "available_node_types": {
        "machine": {**MACHINE, "min_workers": 0},
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    },
    "head_node_type": "ray.head.default",
    "idle_timeout_minutes": 0.3,
    "upscaling_speed": 1.0,
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "setup_commands")},
    **{key: [] for key in ("initialization_commands", "head_setup_commands", "worker_setup_commands")},
    **{key: [] for key in ("head_start_ray_commands", "worker_start_ray_commands")},
    "file_mounts_sync_continuously": False,
}


@pytest.fixture
def address(tmp_path_factory):
    """Of a head without CPUs. Its folder is short: sockets are in it."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"port {PORT} is taken")
    folder = Path(f"/tmp/grow-{os.getpid()}")
    folder.mkdir()
    (folder / "cluster.json").write_text(json.dumps(CONFIG))
    environment = {**os.environ, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=0", f"--port={PORT}"]
    command += [
        f"--autoscaling-config={folder / 'cluster.json'}",
        "--include-dashboard=false",
        f"--temp-dir={folder}/r",
    ]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            list(map(str, command)),
            env={**environment, "RAY_raylet_start_wait_time_s": "120"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 120
        while "Ray runtime started" not in (folder / "head.log").read_text():
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        (line,) = [one for one in (folder / "head.log").read_text().splitlines() if "ray start --address=" in one]
        yield line.split("'")[1]
    finally:
        for one in of(folder):
            one.kill()
        os.killpg(head.pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", folder], check=False)


def of(folder, *words):
    """Processes with the folder, and all of the words, in their command."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or [])
        if str(folder) in line and all(word in line for word in words) and one.pid != os.getpid():
            found.append(one)
    return found


def machines():
    return of(f"/tmp/grow-{os.getpid()}", "raylet/raylet")


@pytest.mark.parametrize("kill", [False, True])
def test_from_none_to_several_and_back(address, udhr, tmp_path, kill):
    job = {
        "model": "embedded:mini",
        "input": {"path": str(udhr / "*.parquet"), "id": "id"},
        "tasks": [{"task": "embedding"}],
        "output": {"path": str(tmp_path / "out")},
        "cluster": {"address": address, "encoders": {"min": 1, "max": 6}, "shard_rows": 10},
        "engine": {"device": "cpu"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    assert len(machines()) == 1
    running = subprocess.Popen(
        [sys.executable, "-m", "xlmr_ray", "run", tmp_path / "job.yaml"],
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    most, killed = 1, False
    while running.poll() is None:
        there = machines()
        most = max(most, len(there))
        if kill and len(there) >= 3 and not killed:
            newest = max(there, key=lambda one: one.create_time())
            for child in [*newest.children(recursive=True), newest]:
                child.kill()
            killed = True
        time.sleep(0.5)
    said = running.communicate()[1]
    assert running.returncode == 0, said
    assert "the cluster has nothing for an encoder: asked for a machine, waiting at most 1,800 s" in said
    assert "up to 6 encoders as the cluster grows" in said
    assert (most >= 3, killed) == (True, kill)
    store = open_store(str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out" / "data" / current(store).run_id)
    assert len(set(rows["id"].to_pylist())) == len(rows) == 2850
    assert verify(store).ok
    end = time.monotonic() + 90
    while not kill and len(machines()) > 1:  # of a machine that died Ray's provider of such machines knows nothing
        assert time.monotonic() < end, "machines that have nothing to do are still there"
        time.sleep(1)
