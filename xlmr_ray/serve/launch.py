"""`xlmr-ray serve`: the application on a Ray cluster of this machine's own, or on the one of `RAY_ADDRESS`."""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import xlmr_ray.serve.ray_environment  # noqa: F401 - before Ray

# isort: split
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.serve.deployment import BACKPRESSURE, DEPLOYMENT, ongoing
from xlmr_ray.serve.keys import Keys
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.settings import ServeSettings

log = logging.getLogger(__name__)

IMPORT_PATH = "xlmr_ray.serve.deployment:application"


def serve_config(settings: ServeSettings) -> dict[str, Any]:
    """What `serve deploy` takes as it is, and KubeRay's RayService as its `serveConfigV2`.

    What stands under `args` decides what a replica is: when it changes, Ray Serve puts new ones in the old ones' place.
    What stands under `user_config` changes in the replicas that run.
    """
    content = settings.model_dump(mode="json", exclude_unset=True, exclude={"http"})
    fixed = {key: content[key] for key in ("replicas", "engine") if key in content}
    deployment = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": ongoing(settings.limits),
        "max_queued_requests": ongoing(settings.limits),
        "backpressure_config": BACKPRESSURE,
        "user_config": {key: value for key, value in content.items() if key != "replicas"},
    }
    application = {
        "name": settings.name,
        "import_path": IMPORT_PATH,
        "route_prefix": "/",
        "args": fixed,
        "deployments": [deployment],
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": settings.http.host,
            "port": settings.http.port,
            "keep_alive_timeout_s": settings.http.keep_alive_s,
        },
        "applications": [application],
    }


def run_service(settings: ServeSettings, again: Callable[[], ServeSettings], say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then answers what was accepted and ends. At SIGHUP the settings are read `again`
    and put in force without a pause. Raises UserError for settings that do not fit, JobFailed where Ray Serve cannot
    start them.
    """
    check_models(settings)
    Keys(settings.keys)
    port = free_port(settings.http.host, settings.http.port)
    address = os.environ.get("RAY_ADDRESS")
    own = not ray.is_initialized() and not address
    if own:
        ray.init(address="local", include_dashboard=False, logging_level="error")
    elif not ray.is_initialized():
        ray.init(address=address, logging_level="error")
    # Behind Ray's own, which it sets as it starts.
    stopped, changed = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    signal.signal(signal.SIGHUP, lambda *_: changed.set())
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        http = {"host": settings.http.host, "port": port, "keep_alive_timeout_s": settings.http.keep_alive_s}
        serve.start(proxy_location="EveryNode", http_options=http)
        deploy(settings, stopped)
        say(f"http://{settings.http.host}:{port} answers: {', '.join(m.called for m in settings.models)}")
        while not stopped.wait(0.2):
            if changed.is_set():
                changed.clear()
                renew(again, say, stopped)
        say("stopping: no new requests, those that were accepted are answered")
        serve.delete(settings.name)
    finally:
        if own:
            serve.shutdown()  # without it, this process waits a minute for the cluster that is gone
            ray.shutdown()


def deploy(settings: ServeSettings, stopped: threading.Event) -> None:
    """Puts the settings in force and waits until they are, or until it is `stopped`. Logs that there is no room for a
    replica, which a cluster that grows may mend. Raises JobFailed with the replica's own last line where it does not
    start.
    """
    # `serve.run` would give every call a version of its own, and so replace the replicas each time.
    before, told = time.time(), False
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(serve_config(settings)))
    while not stopped.wait(0.2):
        there = serve.status().applications.get(settings.name)
        if there is None or there.last_deployed_time_s < before - 1:
            continue
        if there.status == "RUNNING":
            return
        texts = [there.message, *(deployment.message for deployment in there.deployments.values())]
        if not told and (full := next((text for text in texts if "to be scheduled" in text), None)):
            log.warning("%s", " ".join(full.split()))
            told = True
        if there.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            lines = [line.strip() for text in texts for line in text.splitlines() if "Error: " in line]
            raise JobFailed(lines[-1] if lines else there.message)


def renew(again: Callable[[], ServeSettings], say: Callable[[str], None], stopped: threading.Event) -> None:
    """Other settings for the service that runs; those that do not fit change nothing."""
    try:
        new = again()
        check_models(new)
        Keys(new.keys)
        deploy(new, stopped)
    except (UserError, JobFailed) as error:
        say(f"the settings stay as they were: {error}")
    else:
        say("the settings were read again")


def free_port(host: str, port: int) -> int:
    """The port, or one that is free for 0. Raises UserError where another program has it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"http: {host}:{port} cannot be had: {error.strerror}; give another --port") from None
        return int(probe.getsockname()[1])
