"""What the service has, in the form of text-embeddings-inference, with all models and tasks beside it."""

from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from xlmr_ray.serve.models import Model, Served
from xlmr_ray.serve.service import Service
from xlmr_ray.tasks.task import Task


class TaskCard(BaseModel):
    """A task of a model, the roles of its texts, and what it gives. A role is of a `text`, of a list of `texts`, or of
    `spans`, a list of [start, end].
    """

    model_config = ConfigDict(extra="forbid")

    task: str
    model: str
    roles: dict[str, Literal["text", "texts", "spans"]]
    labels: list[str] | None = None
    dimensions: int | None = None
    prompts: list[str] | None = None


class Info(BaseModel):
    """`model_*` are of the first model, `model_type` of its first task."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, dict[str, Any]]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    settings_version: str | None
    tasks: list[TaskCard]


def info(service: Service, served: Served) -> Info:
    """Of the service, with the model and task that `served` is in front."""
    model, limits = served.model, service.limits
    return Info(
        model_id=model.name,
        model_sha=model.digest,
        model_dtype=model.dtype,
        model_type=model_type(served),
        max_concurrent_requests=limits.concurrent_requests,
        max_input_length=model.max_length,
        max_batch_tokens=served.queue.max_tokens,
        max_batch_requests=None,
        max_client_batch_size=limits.inputs,
        auto_truncate=False,
        tokenization_workers=service.tokenizers,
        version=version("xlmr-ray"),
        sha=None,
        docker_label=None,
        settings_version=service.settings.version,
        tasks=[task_card(service.find(task, one.name)) for one in service.models.values() for task in one.tasks],
    )


def model_type(served: Served) -> dict[str, dict[str, Any]]:
    """The kind that text-embeddings-inference knows a model as; of other tasks their own name."""
    if (pooling := served.bound.pooled_by) is not None:
        return {"embedding": {"pooling": pooling}}
    kind = {"rerank": "reranker", "text-classification": "classifier"}.get(served.task, served.task)
    return {kind: names(served.model)}


def names(model: Model) -> dict[str, Any]:
    labels = list(model.config.labels)
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def task_card(served: Served) -> TaskCard:
    labels, prompts = served.bound.output_labels, served.bound.known_prompts
    return TaskCard(
        task=served.task,
        model=served.model.name,
        roles={role: role_kind(served.bound, role) for role in served.bound.roles},
        labels=None if labels is None else list(labels),
        dimensions=served.bound.vector_width,
        prompts=None if prompts is None else list(prompts),
    )


def role_kind(task: Task, role: str) -> Literal["text", "texts", "spans"]:
    if role in task.span_roles:
        return "spans"
    return "texts" if role in task.list_roles else "text"
