"""Makes tonight's RayJob from the suspended one and waits for its end. Runs in the CronJob's pod, by Python alone.

Exit codes: 0 it succeeded, 3 it failed or is gone (another try would find the same), 1 it could not be made or watched.
"""

import copy
import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 15.0
# How long the Kubernetes API may be away, in polls.
PATIENCE = 40
ENDED = ("Complete", "Failed", "ValidationFailed")
FAILED = 3

Object = dict[str, Any]
Call = Callable[[str, str, Object | None], Object]


class ApiError(Exception):
    """An answer of the API that is none of success; `code` is its HTTP status, 0 where there was no answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def passing(self) -> bool:
        return self.code in (0, 429) or self.code >= 500


def api(base: str, account: Path = ACCOUNT) -> Call:
    """A function that calls the Kubernetes API at `base` as the pod's service account."""
    context = ssl.create_default_context(cafile=str(account / "ca.crt")) if base.startswith("https:") else None

    def call(method: str, path: str, body: Object | None = None) -> Object:
        # The token is read each time: Kubernetes replaces it every hour.
        request = urllib.request.Request(base + path, method=method, data=json.dumps(body).encode() if body else None)
        request.add_header("Authorization", f"Bearer {(account / 'token').read_text().strip()}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                content: Object = json.load(answer)
                return content
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            try:
                text = json.loads(text)["message"]
            except (ValueError, KeyError, TypeError):
                text = text[:300]
            raise ApiError(error.code, f"{method} {path}: {error.code} {text}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise ApiError(0, f"{method} {path}: {error}") from None

    return call


def persistent(call: Call, *, seconds: float = SECONDS, patience: int = PATIENCE) -> Call:
    """`call`, tried again while the API is away or busy."""

    def again(method: str, path: str, body: Object | None = None) -> Object:
        for left in reversed(range(patience)):
            try:
                return call(method, path, body)
            except ApiError as error:
                if not error.passing or not left:
                    raise
                print(f"trying again: {error}", flush=True)
                time.sleep(seconds)
        raise AssertionError("patience is at least 1")

    return again


def logical_time(job_name: str, now: datetime) -> datetime:
    """The minute that a Job stands for: the one of its schedule, with which Kubernetes ends its name (in minutes since
    1970), or now for one made by hand.
    """
    if found := re.search(r"-(\d{8,9})$", job_name):
        minute = datetime.fromtimestamp(int(found[1]) * 60, UTC)
        if abs(now - minute) < timedelta(days=7):
            return minute
    return now


def rayjob(template: Object, name: str, owner: Object, queue: str) -> Object:
    """A RayJob with the template's spec. With a queue it starts suspended, and Kueue starts it."""
    metadata = template["metadata"]
    labels = {key: value for key, value in metadata.get("labels", {}).items() if key != "app.kubernetes.io/component"}
    if queue:
        labels["kueue.x-k8s.io/queue-name"] = queue
    spec = copy.deepcopy(template["spec"])
    spec["suspend"] = bool(queue)
    # A retry is the operator's to name.
    spec.pop("jobId", None)
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
        "spec": spec,
    }


def launch(call: Call, namespace: str, template: str, owner: Object, queue: str, *, now: datetime) -> str:
    """Makes the RayJob, or finds it made, and returns its name."""
    path = f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    name = f"{template}-{logical_time(owner['name'], now):%Y%m%d-%H%M}"
    wanted = rayjob(call("GET", f"{path}/{template}", None), name, owner, queue)
    try:
        call("POST", path, wanted)
        print(f"rayjob {name}: made", flush=True)
    except ApiError as error:
        if error.code != 409:
            raise
        print(f"rayjob {name}: is there already", flush=True)
    return name


def wait(call: Call, namespace: str, name: str, *, seconds: float = SECONDS) -> int:
    """Waits for the RayJob's end and returns the exit code."""
    said = ""
    while True:
        try:
            status = call("GET", f"/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}", None).get("status", {})
        except ApiError as error:
            if error.code != 404:
                raise
            print(f"rayjob {name}: was deleted before its end", flush=True)
            return FAILED
        state = status.get("jobDeploymentStatus", "")
        text = " ".join(filter(None, (state, status.get("jobStatus"), status.get("reason"), status.get("message"))))
        if text != said:
            print(f"rayjob {name}: {text}", flush=True)
            said = text
        if state in ENDED:
            return 0 if state == "Complete" and status.get("jobStatus") == "SUCCEEDED" else FAILED
        time.sleep(seconds)


def main() -> int:
    # As a container's first process it would not end by SIGTERM otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    call = persistent(api(f"https://{f'[{host}]' if ':' in host else host}:{port}"))
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": os.environ["JOB_NAME"],
        "uid": os.environ["JOB_UID"],
    }
    namespace, queue = os.environ["NAMESPACE"], os.environ.get("QUEUE", "")
    try:
        name = launch(call, namespace, os.environ["TEMPLATE"], owner, queue, now=datetime.now(UTC))
        return wait(call, namespace, name)
    except ApiError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
