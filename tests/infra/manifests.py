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
SERVICES = sorted(folder.name for folder in (KUBERNETES / "service" / "overlays").iterdir() if folder.is_dir())
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
    return build(KUBERNETES / ("service" if overlay in SERVICES else "") / "overlays" / overlay)


def one(objects: tuple[Object, ...], kind: str, name: str | None = None) -> Object:
    found = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{kind} {name}: {len(found)}"
    return found[0]


def the_rayjob(objects: tuple[Object, ...]) -> Object:
    """The RayJob, or the one that a RayCronJob makes."""
    made = [
        {**thing, "kind": "RayJob", "spec": thing["spec"]["jobTemplate"]}
        for thing in objects
        if thing["kind"] == "RayCronJob"
    ]
    return made[0] if made else one(objects, "RayJob")


def templates(thing: Object) -> dict[str, Object]:
    """The pod templates of an object, by what they are for."""
    kind, spec = thing["kind"], thing.get("spec", {})
    if kind == "CronJob":
        return {"launcher": spec["jobTemplate"]["spec"]["template"]}
    if kind == "StatefulSet":
        return {"redis": spec["template"]}
    if kind == "RayCronJob":
        return templates({**thing, "kind": "RayJob", "spec": spec["jobTemplate"]})
    if kind not in ("RayJob", "RayService"):
        return {}
    cluster = spec["rayClusterSpec" if kind == "RayJob" else "rayClusterConfig"]
    workers = {group["groupName"]: group["template"] for group in cluster.get("workerGroupSpecs", [])}
    submitter = {"submitter": spec["submitterPodTemplate"]} if kind == "RayJob" else {}
    return {"head": cluster["headGroupSpec"]["template"], **workers, **submitter}


def quantity(text: str | int) -> float:
    """A Kubernetes quantity as a number: bytes, cores."""
    text = str(text)
    for suffix, factor in FACTORS.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)
