"""`xlmr-ray serve`: the application on a Ray cluster of this machine's own, or on the one of `RAY_ADDRESS`."""

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xlmr_ray.serve.ray_environment  # noqa: F401 - before Ray

# isort: split
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.ray_start import socket_folder, starting
from xlmr_ray.serve.batches.shelf import check_shelf
from xlmr_ray.serve.deployment import BACKPRESSURE, DEPLOYMENT, FOLDER_VARIABLE, ongoing
from xlmr_ray.serve.haproxy import HAProxy, listener, netloc
from xlmr_ray.serve.keys import Keys
from xlmr_ray.serve.logs import PIPE_VARIABLE, log_pipe
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.requests import FRONT_VARIABLE
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.workers_path import in_environment

log = logging.getLogger(__name__)

# Seconds between two looks at the replicas.
LOOK_S = 0.5

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
    check_servable(settings)
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        serve_on_cluster(settings, again, say)
    else:
        serve_on_own(settings, again, say)


def check_servable(settings: ServeSettings) -> None:
    """Raises UserError for what could not be served."""
    check_models(settings)
    Keys(settings.keys)
    check_shelf(settings)


def serve_on_own(settings: ServeSettings, again: Callable[[], ServeSettings], say: Callable[[str], None]) -> None:
    """A Ray cluster for this machine only, behind HAProxy, which has the port before all else and lets it go last."""
    http, token = settings.http, secrets.token_hex(16)
    with (
        TemporaryDirectory(prefix="xlmr-ray-", dir=socket_folder()) as folder,
        listener(http.host, http.port) as port,
        log_pipe(Path(folder)).open("w") as log_file,
        HAProxy(http, port, token, Path(folder), log_file) as front,
        in_environment({FRONT_VARIABLE: token, PIPE_VARIABLE: log_file.name, FOLDER_VARIABLE: str(Path.cwd())}),
    ):
        address = netloc(http.host, port.getsockname()[1])
        with starting("this machine"):
            ray.init(address="local", include_dashboard=False, logging_level="error", log_to_driver=False)
        try:
            stopped, changed = signals()
            inner = free_port("127.0.0.1", 0)
            start_serve("127.0.0.1", inner, http.keep_alive_s)
            deploy(settings, stopped)

            def look() -> None:
                if front.process.poll() is not None:
                    raise JobFailed("haproxy has ended; start the service again")
                front.use(replicas(settings, inner))

            look()
            wait(settings, address, again, say, stopped, changed, look)
            front.drain(settings.replicas.graceful_shutdown_s)
        finally:
            ray.shutdown()
            port.close()  # so that HAProxy is the last who has it


def serve_on_cluster(settings: ServeSettings, again: Callable[[], ServeSettings], say: Callable[[str], None]) -> None:
    """On a cluster that is there already, behind its own proxies on each machine."""
    http = settings.http
    port = free_port(http.host, http.port)
    if not ray.is_initialized():
        with starting(f"RAY_ADDRESS {os.environ['RAY_ADDRESS']}"):
            ray.init(address=os.environ["RAY_ADDRESS"], logging_level="error")
    stopped, changed = signals()
    start_serve(http.host, port, http.keep_alive_s)
    deploy(settings, stopped)
    wait(settings, netloc(http.host, port), again, say, stopped, changed, lambda: None)
    serve.delete(settings.name)


def signals() -> tuple[threading.Event, threading.Event]:
    """Set by SIGINT and SIGTERM, and by SIGHUP. To be called behind Ray's start, which takes them for itself."""
    stopped, changed = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    signal.signal(signal.SIGHUP, lambda *_: changed.set())
    return stopped, changed


def start_serve(host: str, port: int, keep_alive_s: int) -> None:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": host, "port": port, "keep_alive_timeout_s": keep_alive_s}
    serve.start(proxy_location="EveryNode", http_options=http)


def wait(
    settings: ServeSettings,
    address: str,
    again: Callable[[], ServeSettings],
    say: Callable[[str], None],
    stopped: threading.Event,
    changed: threading.Event,
    look: Callable[[], None],
) -> None:
    """Until it is `stopped`: reads the settings again when they have `changed`, and has a `look` at the replicas."""
    if not stopped.is_set():
        say(f"http://{address} answers: {', '.join(settings.names)}")
    while not stopped.wait(LOOK_S):
        if changed.is_set():
            changed.clear()
            renew(again, say, stopped)
        look()
    say("stopping: no new requests, those that were accepted are answered")


def replicas(settings: ServeSettings, proxy: int) -> dict[str, int]:
    """The replicas that can be asked, by name their ports. When they went to none for lack of requests, Ray Serve's
    proxy, whose requests bring one back.
    """
    groups = ray.get(_get_global_client()._controller.get_target_groups.remote(settings.name))
    targets = {target.name.rpartition("#")[2]: target.port for group in groups for target in group.targets}
    return {name: port for name, port in targets.items() if port != proxy or settings.replicas.min == 0}


def deploy(settings: ServeSettings, stopped: threading.Event) -> None:
    """Puts the settings in force and waits until they are, or until it is `stopped`. Logs that there is no room for a
    replica, which a cluster that grows may mend. Raises JobFailed with the replica's own last line where it does not
    start.
    """
    # `serve.run` would give every call another version, and so replace the replicas each time.
    before, noted = time.time(), False
    _get_global_client().deploy_apps(ServeDeploySchema.model_validate(serve_config(settings)))
    while not stopped.wait(0.2):
        there = serve.status().applications.get(settings.name)
        if there is None or there.last_deployed_time_s < before - 1:
            continue
        if there.status == "RUNNING":
            return
        texts = [there.message, *(deployment.message for deployment in there.deployments.values())]
        if not noted and (full := next((text for text in texts if "to be scheduled" in text), None)):
            log.warning("%s", " ".join(full.split()))
            noted = True
        if there.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            lines = [line.strip() for text in texts for line in text.splitlines() if "Error: " in line]
            raise JobFailed(lines[-1] if lines else there.message)


def renew(again: Callable[[], ServeSettings], say: Callable[[str], None], stopped: threading.Event) -> None:
    """Other settings for the service that runs; those that do not fit change nothing."""
    try:
        new = again()
        check_servable(new)
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
            raise UserError(
                f"http: {netloc(host, port)} cannot be had: {error.strerror}; give another --port"
            ) from None
        return int(probe.getsockname()[1])
