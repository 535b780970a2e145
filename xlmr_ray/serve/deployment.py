"""The service as a Ray Serve application: `import_path: xlmr_ray.serve.deployment:application`, whose `args` are the
settings.

Ray Serve reads this module in two processes before the replica's, one after the other, to see what is deployed: what
takes seconds to import, torch first, is imported by the replica.

One deployment holds tokenizer, queue and engine, so that a request makes one hop. All settings are the deployment's
`user_config`: limits, keys, logging and models change in the running replicas. New models load beside the old ones,
which answer until the others are warm. What Ray Serve itself holds of them (replicas, their cores, health checks)
changes as it does for any deployment.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram
from ray.serve.schema import LoggingConfig
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from xlmr_ray.serve.batches.shelf import shelf_of
from xlmr_ray.serve.keys import Keys
from xlmr_ray.serve.logs import log_as_json, log_stream
from xlmr_ray.serve.settings import MOST_TOKENIZERS, LimitsSection, ServeSettings
from xlmr_ray.serve.tracing import export_spans
from xlmr_ray.validation import checked

if TYPE_CHECKING:
    from xlmr_ray.serve.metrics import ServiceMetric
    from xlmr_ray.serve.service import Service

log = logging.getLogger(__name__)

DEPLOYMENT = "Service"
# What Ray Serve itself answers when more wait than it is to keep.
BACKPRESSURE = {"status_code": 429, "retry_after_s": 1}
# The environment's variable with the folder of the process that was started, from which the settings' paths are.
FOLDER_VARIABLE = "XLMR_RAY_FOLDER"
# How often the state goes to Ray's metrics.
STATE_S = 5.0


def application(args: Mapping[str, Any]) -> serve.Application:
    """What `serve deploy`, `serve run` and KubeRay's RayService call. Raises UserError for settings that do not fit.

    Without `models`, `args` say what a replica is, and the deployment's `user_config` says the rest.
    """
    complete = "models" in args
    settings = checked(ServeSettings, args if complete else {**args, "models": ["embedded:mini"]}, "args")
    return deployment_of(settings, complete=complete).bind()


def deployment_of(settings: ServeSettings, *, complete: bool) -> serve.Deployment:
    """The deployment with what Ray Serve itself does for it; without models, as long as it is not `complete`."""
    replicas = settings.replicas
    return serve.deployment(Replica).options(
        name=DEPLOYMENT,
        user_config=settings.model_dump(mode="json", exclude={"http", "replicas"}) if complete else None,
        max_ongoing_requests=ongoing(settings.limits),
        max_queued_requests=ongoing(settings.limits),
        backpressure_config=BACKPRESSURE,
        autoscaling_config={
            "min_replicas": replicas.min,
            "initial_replicas": max(replicas.min, 1),
            "max_replicas": replicas.max,
            "target_ongoing_requests": replicas.target_ongoing_requests,
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
        },
        ray_actor_options={"num_cpus": cpus_of(settings), "num_gpus": gpus_of(settings)},
        graceful_shutdown_timeout_s=replicas.graceful_shutdown_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=replicas.health_check_period_s,
        health_check_timeout_s=replicas.health_check_timeout_s,
        logging_config=LoggingConfig(enable_access_log=False),
    )


def ongoing(limits: LimitsSection) -> int:
    """Requests that Ray Serve gives a replica at once: those beyond its own limit, too, which it answers 429."""
    return 2 * limits.concurrent_requests


def cpus_of(settings: ServeSettings) -> float:
    """Cores that Ray keeps for a replica: its part of a machine on which all of them find room. Ray Serve's own actors
    take none.
    """
    if settings.replicas.cpus != "auto":
        return settings.replicas.cpus
    if settings.engine.threads != "auto":
        return float(settings.engine.threads)
    machines = ray.nodes() if ray.is_initialized() else []
    largest = max((machine["Resources"].get("CPU", 0.0) for machine in machines if machine["Alive"]), default=0.0)
    return float(max(1, int(largest) // settings.replicas.max))


def gpus_of(settings: ServeSettings) -> float:
    """GPUs that Ray keeps for a replica: one where the models are to be on one, and the cluster has any."""
    if settings.replicas.gpus != "auto":
        return settings.replicas.gpus
    if settings.engine.device == "auto":
        return float(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1)
    return float(settings.engine.device.startswith("cuda"))


def own_cores() -> int:
    """Cores that Ray keeps for this actor, one at least."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0)))


def with_threads(settings: ServeSettings, cores: int) -> ServeSettings:
    """The settings, with as many threads as the replica has cores where they leave that open."""
    engine = settings.engine
    threads = cores if engine.threads == "auto" else engine.threads
    tokenizers = min(MOST_TOKENIZERS, cores) if engine.tokenizers == "auto" else engine.tokenizers
    engine = engine.model_copy(update={"threads": threads, "tokenizers": tokenizers})
    return settings.model_copy(update={"engine": engine})


@serve.ingress()
class Replica:
    """One process of the service. It has nothing until Ray Serve gives it the settings, before its first request."""

    def __init__(self) -> None:
        os.chdir(os.environ.get(FOLDER_VARIABLE, "."))
        self.service: Service | None = None
        self.log = log_stream()
        self.routes: ASGIApp = Starlette()
        self.tasks: set[asyncio.Task[None]] = set()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """A door to the application of the models that are resident now. A function: uvicorn takes a bound method for
        an application of ASGI 2.
        """

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            await self.routes(scope, receive, send)

        return door

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """At the start, loads the models; later, puts limits and keys in force at once, and other models in place of
        the old ones as soon as they are warm.
        """
        from xlmr_ray.serve.app import build_app, compute_batches
        from xlmr_ray.serve.metrics import Metrics
        from xlmr_ray.serve.service import Service

        new = with_threads(checked(ServeSettings, user_config, "user_config"), own_cores())
        Keys(new.keys)  # raises for keys that are none
        log_as_json(new.log.level, self.log)
        if self.service is None:
            export_spans()
            service = Service(new, Metrics(RayMetrics()))
            await asyncio.to_thread(service.replace_models, new)
            self.service, self.routes = service, build_app(service, new)
            self.start(self.tell(service))
            self.computing = self.start(compute_batches(self.__serve_build_asgi_app__(), service))
            return
        old, self.service.settings = self.service.settings, new
        if old.batches != new.batches:
            self.computing.cancel()
            self.service.shelf = shelf_of(new)
            self.computing = self.start(compute_batches(self.__serve_build_asgi_app__(), self.service))
        if (old.models, old.engine) != (new.models, new.engine) or self.service.failure:
            self.start(self.replace(self.service, new))
        elif old.cors != new.cors:
            self.routes = build_app(self.service, new)

    async def replace(self, service: Service, settings: ServeSettings) -> None:
        from xlmr_ray.serve.app import build_app

        try:
            await asyncio.to_thread(service.replace_models, settings)
        except Exception as error:
            service.failure = str(error)
            log.error("the new models could not be loaded, the old ones go on: %s", error)
        else:
            self.routes = build_app(service, settings)
            log.info("other models are resident: %s", ", ".join(service.models))

    async def tell(self, service: Service) -> None:
        while True:
            service.tell_state()
            await asyncio.sleep(STATE_S)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def check_health(self) -> None:
        """Ray Serve replaces a replica for which this raises."""
        trouble = "no settings: neither args nor user_config" if self.service is None else self.service.trouble()
        if trouble:
            raise RuntimeError(trouble)


class RayMetrics:
    """The service's numbers as Ray's own metrics, which each node exports: `ray_xlmr_ray_serve_…`."""

    def __init__(self) -> None:
        from xlmr_ray.serve.metrics import TABLE

        self.made: dict[str, Counter | Gauge | Histogram] = {}
        for metric in TABLE:
            if metric.kind == "histogram":
                self.made[metric.name] = Histogram(
                    metric.name, metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels
                )
            else:
                kind = Counter if metric.kind == "counter" else Gauge
                self.made[metric.name] = kind(metric.name, metric.help, tag_keys=metric.labels)

    def __call__(self, metric: ServiceMetric, labels: tuple[str, ...], value: float) -> None:
        tags = dict(zip(metric.labels, labels, strict=True))
        made = self.made[metric.name]
        if isinstance(made, Counter):
            if value > 0:
                made.inc(value, tags=tags)
        elif isinstance(made, Gauge):
            made.set(value, tags=tags)
        else:
            made.observe(value, tags=tags)
