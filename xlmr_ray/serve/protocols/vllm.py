"""vLLM's routes for models that pool: `/score` and `/pooling`. Its embeddings are OpenAI's, its rerank Cohere's."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import Field

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.body import Cut, Direction, ForModel, Model, Texts
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import as_base64, compared
from xlmr_ray.serve.protocols.openai import at_most, error_body, texts_given, usage
from xlmr_ray.serve.protocols.reply import ask, check_count, reply
from xlmr_ray.serve.protocols.responses import OpenAIError, Poolings, Scores
from xlmr_ray.serve.protocols.tei_bodies import Inputs
from xlmr_ray.serve.requests import ErrorBody, Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest
from xlmr_ray.validation import listed

SCORE = ("/score", "/v1/score")
SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
CUT_WITH = "truncate_prompt_tokens: -1"


class ForPooling(ForModel):
    """Texts longer than the model are refused; with `truncate_prompt_tokens` they are cut. `use_activation: false`
    gives numbers as they are: without softmax or sigmoid, vectors of any length. `user` and `request_id` change
    nothing.
    """

    user: str | None = None
    request_id: str | None = None
    priority: Literal[0] | None = None
    truncate_prompt_tokens: Cut | None = None
    truncation_side: Direction | None = None
    use_activation: bool | None = None

    @property
    def cutting(self) -> Cutting:
        return Cutting(whole=self.truncate_prompt_tokens is None, side=self.truncation_side, hint=CUT_WITH)


class Score(ForPooling):
    """How well pairs of texts fit together, by a model for `rerank`, or else by how near their vectors are. One pair of
    fields: `text_1` and `text_2`, `queries` and `documents`, `queries` and `items`, or `data_1` and `data_2`; one text
    on the first side goes with each of the second.
    """

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None


class Pooling(ForPooling):
    """`task`: `embed`, a vector a text; `classify`, the scores of the labels in the checkpoint's order; `token_embed`,
    a vector a token, which is what a model that is served for `feature-extraction` gives if not said otherwise, or for
    `multi-vector`, whose vectors go first.
    """

    input: Inputs
    task: Literal["embed", "classify", "token_embed"] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    add_special_tokens: Literal[True] | None = None
    token_ids: bool | None = None


def errors(path: str) -> ErrorBody | None:
    return error_body if path in (*SCORE, "/pooling") else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["vLLM"])
    for path in SCORE:
        route = documented(f"POST {path}", Scores, OpenAIError, summary="How well pairs of texts fit together")

        async def score(body: Score, model: Model = None) -> Response:
            return await scored(service, body, body.which(model))

        routes.post(path, name=path.strip("/").replace("/", "_"), **route)(score)

    @routes.post("/pooling", **documented("POST /pooling", Poolings, OpenAIError, summary="Vectors or scores of texts"))
    async def pooling(body: Pooling, model: Model = None) -> Response:
        return await pooled(service, body, body.which(model))

    return routes


def pooling_reply(kind: str, model: str, values: Sequence[Any], answer: Answer, field: str) -> Response:
    data = [{"index": index, "object": kind, field: value} for index, value in enumerate(values)]
    head = {"id": str(uuid.uuid4()), "object": "list", "created": int(time.time()), "model": model}
    return reply({**head, "data": data, "usage": usage(answer)}, answer)


async def scored(service: Service, body: Score, model: str | None) -> Response:
    names, left, right = sides(body)
    length = at_most(body.truncate_prompt_tokens)
    check_count(service, right, names[1], service.limits.openai_inputs)
    by_vectors = not service.has("rerank", model) and service.has("embedding", model)
    task = "embedding" if by_vectors else "rerank"
    raw = body.use_activation is False
    if by_vectors and raw:
        raise Invalid("use_activation", "goes with a model for rerank")
    served = service.find(task, model)
    request = TaskRequest(
        task,
        {"text": left, "text_pair": right},
        ({} if length is None else {"max_length": length}) | ({"function_to_apply": "none"} if raw else {}),
        model=served.model.name,
        fields={"text": names[0], "text_pair": names[1], "max_length": "truncate_prompt_tokens"},
        once=[name for name in names if isinstance(getattr(body, name), str)],
        cutting=body.cutting,
    )
    if by_vectors:
        answer = await compared(service, request, "cosine")
    else:
        answer = await ask(service, request, service.limits.openai_inputs)
    return pooling_reply("score", served.model.name, answer.answers, answer, "score")


def sides(body: Score) -> tuple[tuple[str, str], list[str], list[str]]:
    """The names of the two fields that are given, and their texts, as many on one side as on the other. Raises
    Invalid.
    """
    given = {name for pair in SIDES for name in pair if getattr(body, name) is not None}
    names = next((pair for pair in SIDES if given == set(pair)), None)
    if names is None:
        pairs = " or ".join(" and ".join(pair) for pair in SIDES)
        raise Invalid(next(iter(sorted(given)), "text_1"), f"expected two fields: {pairs}")
    left, right = (listed(getattr(body, name)) for name in names)
    if len(left) == 1:
        left *= len(right)
    if len(left) != len(right):
        raise Invalid(names[1], f"{len(right)} texts for the {len(left)} of {names[0]}")
    return names, left, right


async def pooled(service: Service, body: Pooling, model: str | None) -> Response:
    task = body.task
    by_token = "multi-vector" if service.has("multi-vector", model) else "feature-extraction"
    if task is None and service.has(by_token, model):
        task = "token_embed"
    if task is None:
        raise Invalid("task", "expected embed, classify or token_embed: this model is not served for token_embed")
    ours = {"embed": "embedding", "classify": "text-classification", "token_embed": by_token}[task]
    served = service.find(ours, model)
    if body.dimensions is not None and task != "embed":
        raise Invalid("dimensions", "goes with task embed")
    raw = body.use_activation is False
    by_task: dict[str, dict[str, Any]] = {
        "embed": {"normalize": not raw, "dimensions": body.dimensions, "precision": "float32"},
        "classify": {"top_k": None} | ({"function_to_apply": "none"} if raw else {}),
        "token_embed": {"normalize": not raw}
        if by_token == "multi-vector"
        else {"pooling": None, "layers": [-1], "return_tensors": True},
    }
    length = at_most(body.truncate_prompt_tokens)
    said = {name: value for name, value in by_task[task].items() if value is not None or name in ("top_k", "pooling")}
    texts, single = await texts_given(service, body.input, body.token_ids, served.model)
    request = TaskRequest(
        ours,
        {"text": texts},
        said | ({} if length is None else {"max_length": length}),
        model=served.model.name,
        fields={"text": "input", "max_length": "truncate_prompt_tokens"},
        once=("input",) if single else (),
        cutting=body.cutting,
    )
    answer = await ask(service, request, service.limits.openai_inputs)
    values: list[NDArray[np.float32]] = answer.answers
    if task == "classify":
        values = [in_label_order(served.model.config.labels, one) for one in answer.answers]
    elif task == "token_embed" and by_token == "feature-extraction":
        values = [of_length_1(one[0].numpy(), raw) for one in answer.answers]
    shown: list[Any] = [as_base64(one) for one in values] if body.encoding_format == "base64" else values
    return pooling_reply("pooling", served.model.name, shown, answer, "data")


def in_label_order(labels: Sequence[str], scores: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """The scores of all labels in the order of the checkpoint's, `(labels)`."""
    by_label = {one["label"]: one["score"] for one in scores}
    return np.array([by_label[label] for label in labels], np.float32)


def of_length_1(states: NDArray[np.float32], raw: bool) -> NDArray[np.float32]:
    """Vectors `(tokens, width)` as they are or of length 1."""
    if raw:
        return states
    lengths: NDArray[np.float32] = np.linalg.norm(states, axis=-1, keepdims=True)
    return np.asarray(states / np.maximum(lengths, 1e-12), np.float32)
