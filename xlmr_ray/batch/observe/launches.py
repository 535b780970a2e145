"""What a launch of a run was made of: the job file, the code, the cluster. One small object each, beside the plan.

A run may have several launches: one that went on where another stopped, perhaps with newer code on another cluster.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from xlmr_ray.batch.cluster import Sizes
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.json_by_line import canonical, parsed
from xlmr_ray.batch.observe.code_version import code_version
from xlmr_ray.batch.store.base import Store
from xlmr_ray.text.redact import clean_url

SECRET = re.compile(r"(^|[_-])(key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE)


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, as Ray sees it; `memory` in bytes."""

    host: str
    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class Launch:
    """`started` in seconds since the epoch; `job` is the job file as it was checked, without secrets."""

    started: float
    code: str
    python: str
    ray: str
    torch: str
    job: dict[str, Any]
    nodes: tuple[Node, ...] = ()
    tokenizers: int = 0
    encoders: int = 0
    writers: int = 0


def launches_key(run_id: str) -> str:
    return f"_runs/{run_id}/launches/"


def leave_launch(store: Store, run_id: str, job: Job, size: Sizes) -> None:
    """Says, beside the plan, what this launch is made of. Ray is connected."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    launch = Launch(
        started=round(time.time(), 3),
        code=code_version(),
        python=platform.python_version(),
        ray=ray.__version__,
        torch=version("torch"),
        job=without_secrets(job.model_dump(mode="json")),
        nodes=tuple(
            Node(
                node["NodeManagerHostname"],
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
                node["Resources"].get("memory", 0.0),
            )
            for node in nodes
        ),
        tokenizers=size.tokenizers,
        encoders=size.encoders,
        writers=size.writers,
    )
    store.put(f"{launches_key(run_id)}{launch.started:.3f}.json", canonical(asdict(launch)))


def last_launch(store: Store, run_id: str) -> str:
    """The key of the run's last launch; empty where there is none."""
    return max((entry.key for entry in store.list(launches_key(run_id))), default="")


def launches(store: Store, run_id: str) -> Iterator[Launch]:
    """The run's launches, the first one first. Raises `Damaged`."""
    for entry in store.list(launches_key(run_id)):
        content = parsed(store.get(entry.key)[0], store.url(entry.key))
        yield Launch(**{**content, "nodes": tuple(Node(**node) for node in content["nodes"])})


def without_secrets(content: Any, name: str = "") -> Any:
    """The content of a job file as it may be shown: URLs without user, password and query; what is named like a
    secret, starred.
    """
    if isinstance(content, dict):
        return {key: without_secrets(value, str(key)) for key, value in content.items()}
    if isinstance(content, list):
        return [without_secrets(value, name) for value in content]
    if isinstance(content, str):
        return "***" if SECRET.search(name) else clean_url(content)
    return content
