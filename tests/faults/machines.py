"""A Ray cluster of one head without CPUs and two nodes, on this machine, whose nodes and actors can be killed."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any

import psutil

import xlmr_ray.batch.cluster  # noqa: F401 -- sets what Ray reads when it is imported
from xlmr_ray.batch.cluster import quiet_core

CPUS = 2
ACTORS = ("Tokenize", "Encode", "Write")


class Machines:
    """The cluster; child processes of its nodes inherit this process's environment as it is now."""

    def __init__(self, nodes: int = 2, **head: Any) -> None:
        import ray
        from ray.cluster_utils import Cluster

        logging.getLogger("ray").setLevel(logging.ERROR)
        # else every `ray.init()` of this machine would join this cluster
        ray._private.utils.write_ray_address = lambda *args: None
        with quiet_core():
            self.cluster = Cluster(
                initialize_head=True,
                shutdown_at_exit=False,
                head_node_args={"num_cpus": 0, "include_dashboard": False, **head},
            )
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def logs(self) -> str:
        """The folder where Ray and its workers log."""
        return str(self.cluster.head_node.get_logs_dir_path())

    def add(self) -> None:
        """One more node."""
        with quiet_core():
            self.cluster.add_node(num_cpus=CPUS)

    def remove(self, index: int = 0) -> None:
        """SIGKILL to a node: its raylet and all that runs under it."""
        node = sorted(self.cluster.worker_nodes, key=lambda node: int(node.node_manager_port))[index]
        workers = _children(_raylet(node))
        with contextlib.suppress(psutil.NoSuchProcess):
            _raylet(node).kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        with quiet_core():
            self.cluster.remove_node(node, allow_graceful=False)

    def actors(self, name: str) -> list[psutil.Process]:
        """Processes of the job's actors of this class (one of ACTORS), on all nodes."""
        return [found for node in self.cluster.list_all_nodes() for found in actors_under(_raylet(node), name)]

    def stop(self) -> None:
        import ray

        ray.shutdown()
        processes = [child for node in self.cluster.list_all_nodes() for child in _children(_raylet(node))]
        with quiet_core():
            self.cluster.shutdown()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _raylet(node: Any) -> psutil.Process:
    info = node.all_processes["raylet"][0]
    return psutil.Process(info.process.pid)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def actors_under(parent: psutil.Process, name: str) -> list[psutil.Process]:
    """Ray's processes below this one that run an actor of this class."""
    found = []
    for process in _children(parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and name in title:
                found.append(process)
    return found


def kill(process: psutil.Process) -> bool:
    """SIGKILL; whether the process was there."""
    try:
        os.kill(process.pid, 9)
    except ProcessLookupError:
        return False
    return True
