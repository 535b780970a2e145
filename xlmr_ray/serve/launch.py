"""`xlmr-ray serve`: the application on a Ray cluster of this machine's own, or on the one of `RAY_ADDRESS`."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

# Read by Ray when it is imported.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import yaml
from ray import serve

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.serve.deployment import application
from xlmr_ray.serve.keys import Keys
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.settings import ServeSettings

IMPORT_PATH = "xlmr_ray.serve.deployment:application"


def serve_config(settings: ServeSettings) -> str:
    """What `serve deploy` takes as it is, and KubeRay's RayService as its `serveConfigV2`."""
    args = settings.model_dump(mode="json", exclude_unset=True, exclude={"http", "name"})
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.http.host, "port": settings.http.port},
        "applications": [{"name": settings.name, "import_path": IMPORT_PATH, "route_prefix": "/", "args": args}],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def run_service(settings: ServeSettings, again: Callable[[], ServeSettings], say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then answers what was accepted and ends. At SIGHUP the settings are read `again`
    and put in force without a pause. Raises UserError for settings that do not fit, JobFailed where Ray Serve cannot
    start them.
    """
    check_models(settings)
    Keys(settings.keys)
    port = free_port(settings.http.host, settings.http.port)
    stopped, changed = threading.Event(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    signal.signal(signal.SIGHUP, lambda *_: changed.set())
    address = os.environ.get("RAY_ADDRESS")
    own = not ray.is_initialized() and not address
    try:
        if own:
            ray.init(include_dashboard=False, log_to_driver=True, logging_level="error")
        elif not ray.is_initialized():
            ray.init(address=address, logging_level="error")
        http = {"host": settings.http.host, "port": port, "keep_alive_timeout_s": settings.http.keep_alive_s}
        serve.start(proxy_location="EveryNode", http_options=http)
        deploy(settings)
        say(f"http://{settings.http.host}:{port} answers: {', '.join(m.called for m in settings.models)}")
        while not stopped.wait(0.2):
            if changed.is_set():
                changed.clear()
                renew(again, say)
        say("stopping: no new requests, those that were accepted are answered")
        serve.delete(settings.name)
    finally:
        if own:
            serve.shutdown()
            ray.shutdown()


def deploy(settings: ServeSettings) -> None:
    """Raises JobFailed with the replica's own last line where it does not start."""
    args: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    try:
        serve.run(application(args), name=settings.name, route_prefix="/")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Error: " in line or "Failed: " in line]
        raise JobFailed(lines[-1] if lines else str(error).splitlines()[0]) from None


def renew(again: Callable[[], ServeSettings], say: Callable[[str], None]) -> None:
    """Other settings for the service that runs; those that do not fit change nothing."""
    try:
        new = again()
        check_models(new)
        Keys(new.keys)
        deploy(new)
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
