"""The settings of a service: models and their tasks, limits, keys, replicas. Unknown keys are refused with the nearest
known one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from xlmr_ray.engine.section import EngineKeys, TaskKeys
from xlmr_ray.errors import UserError
from xlmr_ray.validation import Auto, Count, Section, checked, listed, named_task, read_yaml

Seconds = Annotated[float, Field(gt=0)]
# Threads that tokenize where the settings leave it open; more of them wait for the interpreter's lock.
MOST_TOKENIZERS = 4


def named_model(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


# A task's options are in force where a request does not say otherwise.
Tasks = Annotated[tuple[Annotated[TaskKeys, BeforeValidator(named_task)], ...], BeforeValidator(listed)]


class AdapterSection(Section):
    """A LoRA adapter of peft's in a folder: a model by the name that it is listed under. Without `tasks` it has that of
    the head that it brings, and those of its base where it brings none.
    """

    model: str
    tasks: Tasks = ()


class ModelSection(Section):
    """`model` is a checkpoint as everywhere; `name` is what clients call it, the last part of `model` if not said.
    Without `tasks` it has the one of its architecture. `adapters` are served beside it, on its weights; with `merge`
    one of them in its place, in separate weights.
    """

    model: str
    name: str | None = None
    tasks: Tasks = ()
    adapters: Annotated[dict[str, Annotated[AdapterSection, BeforeValidator(named_model)]], Field(default_factory=dict)]
    merge: bool = False

    @model_validator(mode="after")
    def one_is_merged(self) -> Self:
        if self.merge and len(self.adapters) != 1:
            raise ValueError(f"merge: for a model with one adapter, got {len(self.adapters)}")
        return self

    @property
    def names(self) -> list[str]:
        """What clients call the models of this section."""
        return [*([] if self.merge else [self.called]), *self.adapters]

    @property
    def called(self) -> str:
        if self.name is not None:
            return self.name
        return self.model.partition("@")[0].rstrip("/").rpartition("/")[2].rpartition(":")[2] or self.model


class ReplicaEngineSection(EngineKeys):
    """As in a job file. `threads` of the CPU for the model and `tokenizers` threads beside it; `auto`: as many as the
    replica's cores, and 4 at most of the latter. `cache_bytes` of results are kept for inputs that come again, of all
    models of a replica together; 0: none.
    """

    threads: Auto | Count = "auto"
    tokenizers: Auto | Count = "auto"
    cache_bytes: Annotated[int, Field(ge=0)] = 0


class LimitsSection(Section):
    """What a request may take and how many may wait. Beyond: 413 for one request's size, 429 for all requests', 408
    for time.

    `inputs` of a request in text-embeddings-inference's and Hugging Face's forms, `openai_inputs` in OpenAI's, vLLM's
    and infinity's, `cohere_inputs` in Cohere's and Jina's; `request_tokens` of all of them together, fewer where the
    engine computes fewer in `request_s`; `sequences`: pairs and windows that a request's inputs become; `results`:
    numbers that the model gives for it; `queue_tokens: auto` is what a third of `request_s` computes, 32 batches at
    least; `forward_s`: a forward pass that takes longer counts as hanging, and the replica as unhealthy; `new_tokens`:
    what text generation may write; `empty` texts are refused, or scored.
    """

    concurrent_requests: Count = 512
    body_bytes: Count = 2_000_000
    json_depth: Count = 32
    inputs: Count = 32
    openai_inputs: Count = 2048
    cohere_inputs: Count = 1000
    sequences: Count = 4096
    request_tokens: Count = 300_000
    results: Count = 33_554_432
    new_tokens: Count = 512
    queue_tokens: Auto | Count = "auto"
    request_s: Seconds = 30.0
    forward_s: Seconds = 120.0
    empty: Literal["error", "score"] = "error"


class KeysSection(Section):
    """Bearer keys, one a line of `file`, or in the environment's variable `environment`, apart by commas or spaces.
    With neither, anyone may ask.
    """

    file: str | None = None
    environment: str | None = None


class HttpSection(Section):
    """`connections` at once, as far as open files allow, and `client_connections` of them from one address, beyond
    which 429 is answered; a load balancer in front is one address. When three quarters of all are taken, an address
    gets no more than 32, so that some are left for others. `header_s`: seconds in which a request's head, and a body of
    up to 32 KB, must have arrived. These three are of `xlmr-ray serve` on its own Ray: on another cluster its own front
    stands there.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keep_alive_s: Annotated[int, Field(ge=1)] = 90
    connections: Count = 16_384
    client_connections: Count = 1024
    header_s: Annotated[int, Field(ge=1)] = 10


class ReplicasSection(Section):
    """Of Ray Serve's deployment: between `min` and `max` replicas, more when `target_ongoing_requests` a replica are
    exceeded for `upscale_delay_s`. `cpus: auto` is what `engine.threads` says, or else the cores of the cluster's
    largest machine over `max`, one at least: name fewer where other work of Ray runs there. `gpus: auto` is one where
    the cluster has any.
    """

    min: Annotated[int, Field(ge=0)] = 1
    max: Count = 1
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 128.0
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    cpus: Auto | Annotated[float, Field(ge=0)] = "auto"
    gpus: Auto | Annotated[float, Field(ge=0)] = "auto"
    graceful_shutdown_s: Seconds = 60.0
    health_check_period_s: Seconds = 10.0
    health_check_timeout_s: Seconds = 30.0

    @model_validator(mode="after")
    def in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"replicas: min {self.min} is more than max {self.max}")
        return self


class CorsSection(Section):
    """Pages of these `origins` (`https://example.org`, or `*` for all) may ask from a browser."""

    origins: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()


class BatchesSection(Section):
    """OpenAI's files and batches, in a `folder` or under an s3:// URL that all replicas reach; none without it.
    `file_bytes` of an upload, `lines` of a batch; `upload_s` is what a request of theirs may take, and not
    `limits.request_s`.
    """

    folder: str | None = None
    file_bytes: Count = 100_000_000
    lines: Count = 50_000
    upload_s: Seconds = 600.0


class LogSection(Section):
    """Lines of JSON on standard error, one a request, without any text of it."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class ServeSettings(Section):
    """`version` is the caller's own name for this state of the settings; `/info` tells it."""

    name: str = "xlmr-ray"
    version: str | None = None
    models: Annotated[list[Annotated[ModelSection, BeforeValidator(named_model)]], Field(min_length=1)]
    engine: ReplicaEngineSection = ReplicaEngineSection()
    limits: LimitsSection = LimitsSection()
    keys: KeysSection = KeysSection()
    cors: CorsSection = CorsSection()
    batches: BatchesSection = BatchesSection()
    http: HttpSection = HttpSection()
    replicas: ReplicasSection = ReplicasSection()
    log: LogSection = LogSection()

    @property
    def names(self) -> list[str]:
        """What clients call the models."""
        return [name for model in self.models for name in model.names]

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        names = self.names
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"models: two are named {name!r}; give each another `name`")
        return self


def from_call(
    file: Path | None, *, model: str | None, tasks: Sequence[str], host: str | None, port: int | None
) -> ServeSettings:
    """The settings of a file or of one model, with what the call says over them. Raises UserError."""
    if (file is None) == (model is None):
        raise UserError(
            "serve: give a settings file, or --model, not both" if file else "serve: give a FILE or --model"
        )
    if file is not None and tasks:
        raise UserError("serve: --task goes with --model; a settings file names its tasks")
    one: dict[str, Any] = {"model": model} | ({"tasks": list(tasks)} if tasks else {})
    content: dict[str, Any] = read_yaml(file, "models") if file is not None else {"models": [one]}
    http = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    if http and isinstance(content.get("http", {}), dict):
        content = {**content, "http": {**content.get("http", {}), **http}}
    return checked(ServeSettings, content, str(file or "serve"))
