"""The manifests as tests read them: the files, what an overlay builds, the pods in it, and quantities as numbers."""

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir() if folder.is_dir())
FACTORS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "m": 1e-3}

Object = dict[str, Any]


def read(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document is not None]


def build(folder: Path) -> tuple[Object, ...]:
    """What `kubectl apply -k` would send. Skips where there is neither kubectl nor kustomize."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build", str(folder)]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize", str(folder)]
    else:
        pytest.skip("neither kubectl nor kustomize is here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@lru_cache
def built(overlay: str) -> tuple[Object, ...]:
    """One of ours, built once."""
    return build(KUBERNETES / "overlays" / overlay)


def one(objects: tuple[Object, ...], kind: str, name: str | None = None) -> Object:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def templates(thing: Object) -> dict[str, Object]:
    """The pod templates of a RayJob or CronJob, by what they are for."""
    if thing["kind"] == "CronJob":
        return {"launcher": thing["spec"]["jobTemplate"]["spec"]["template"]}
    if thing["kind"] != "RayJob":
        return {}
    cluster = thing["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"] for group in cluster.get("workerGroupSpecs", [])}
    return {"head": cluster["headGroupSpec"]["template"], **workers, "submitter": thing["spec"]["submitterPodTemplate"]}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number: bytes, cores."""
    text = str(text)
    for suffix, factor in FACTORS.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)
