"""OpenAI's embeddings and list of models."""

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.models import Model as Resident
from xlmr_ray.serve.models import Served
from xlmr_ray.serve.protocols.body import Cut, Direction, ForModel, Model
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import as_base64, embedded, given_texts, prompt_for
from xlmr_ray.serve.protocols.reply import reply
from xlmr_ray.serve.protocols.responses import ModelCard, ModelCards, OpenAIError, Vectors
from xlmr_ray.serve.protocols.tei_bodies import Inputs
from xlmr_ray.serve.requests import ErrorBody, Invalid, ServiceError
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest
from xlmr_ray.tasks.vector_precision import FLOATS

BEGAN = int(time.time())
TRUNCATE = "truncate: true"
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
TYPES = {401: "authentication_error", 408: "timeout", 429: "requests", 404: "not_found_error"}


class Embeddings(ForModel):
    """Vectors have length 1. Texts longer than the model are refused; with `truncate` they are cut at the model's
    length, with `truncate_prompt_tokens` (vLLM's) at so many tokens, -1 for the model's, at the end that
    `truncation_side` says. `user` changes nothing. Without `model`, the first one for embeddings answers.

    `prompt_name` is put before every text, or the prompt for an `input_type`, where the model has prompts.
    `embedding_type` is that of the numbers, `float` if not said, whatever the settings store; `int8` and `uint8` are
    between the ranges that the settings name, `binary` and `ubinary` are eight dimensions a number. In base64, all are
    float32.

    `input` may be token ids only with `token_ids: true`, which says that they are of this model's tokenizer (those of
    `/tokenize`).
    """

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    truncate: bool | None = None
    truncate_prompt_tokens: Cut | None = None
    truncation_side: Direction | None = None
    token_ids: bool | None = None
    prompt_name: str | None = None
    input_type: Literal["query", "document", "passage", "search_query", "search_document"] | None = None
    embedding_type: Literal["float", "base64", "int8", "uint8", "binary", "ubinary"] | None = None


def error_body(error: ServiceError) -> Mapping[str, Any]:
    server = error.status >= 500 or error.status == 424
    no_model = error.status == 404 and error.field in ("model", "task")
    return {
        "error": {
            "message": str(error),
            "type": "server_error" if server else TYPES.get(error.status, "invalid_request_error"),
            "param": error.field,
            "code": "model_not_found" if no_model else CODES.get(error.status, error.kind),
        }
    }


def errors(path: str) -> ErrorBody | None:
    return error_body if path == "/v1/embeddings" or path == "/v1/models" or path.startswith("/v1/models/") else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @routes.post("/v1/embeddings", **documented("POST /v1/embeddings", Vectors, OpenAIError, summary="A vector a text"))
    async def embeddings(body: Embeddings, model: Model = None) -> Response:
        whole = not body.truncate and body.truncate_prompt_tokens is None
        return await openai_vectors(
            service, body, body.which(model), Cutting(whole=whole, side=body.truncation_side, hint=TRUNCATE)
        )

    @routes.get("/v1/models", **documented("GET /v1/models", ModelCards, OpenAIError, summary="The models"))
    async def models() -> ModelCards:
        return model_cards(service)

    @routes.get(
        "/v1/models/{model:path}", **documented("GET /v1/models/{model}", ModelCard, OpenAIError, summary="A model")
    )
    async def model(model: str) -> ModelCard:
        return model_card(service.model(model).name)

    return routes


def model_card(name: str) -> ModelCard:
    return ModelCard(id=name, object="model", created=BEGAN, owned_by="xlmr-ray")


def model_cards(service: Service) -> ModelCards:
    return ModelCards(object="list", data=[model_card(name) for name in service.models])


async def openai_vectors(service: Service, body: Embeddings, model: str | None, cutting: Cutting) -> Response:
    served = service.find("embedding", model)
    texts, single = await texts_given(service, body.input, body.token_ids, served.model)
    if body.prompt_name is not None and body.input_type is not None:
        raise Invalid("input_type", "and prompt_name both say the prompt: leave one out")
    request = TaskRequest(
        "embedding",
        {"text": texts},
        {
            "normalize": True,
            "dimensions": body.dimensions,
            "max_length": at_most(body.truncate_prompt_tokens),
            "prompt_name": body.prompt_name or prompt_for(service, served.model, body.input_type),
            "precision": precision_option(body.embedding_type, served),
        },
        model=served.model.name,
        fields={"text": "input", "max_length": "truncate_prompt_tokens", "precision": "embedding_type"},
        once=("input",) if single else (),
        cutting=cutting,
    )
    answer = await embedded(service, request, service.limits.openai_inputs)
    encode = as_base64 if "base64" in (body.encoding_format, body.embedding_type) else np.asarray
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(answer.answers)
    ]
    return reply({"object": "list", "model": served.model.name, "data": data, "usage": usage(answer)}, answer)


def precision_option(kind: str | None, served: Served) -> str:
    """The option of an `embedding_type`. A client that names none computes with the numbers: codes are not for that."""
    if kind not in (None, "float", "base64"):
        return kind
    settings = served.options.get("precision")
    return settings if settings in FLOATS else "float32"


async def texts_given(
    service: Service, given: str | list[str] | list[int] | list[list[int]], ours: bool | None, model: Resident
) -> tuple[list[str], bool]:
    """The texts of `input`, and whether one came alone. Raises Invalid for ids that are not said to be of the model's
    own tokenizer.
    """
    if has_ids(given) and not ours:
        raise Invalid(
            "input",
            "token ids of another tokenizer mean nothing to this model: send text (LangChain's OpenAIEmbeddings: "
            "check_embedding_ctx_length=False), or say token_ids: true if they are of this model's /tokenize",
        )
    return await given_texts(service, given, model, "input", service.limits.openai_inputs)


def usage(answer: Answer) -> dict[str, int]:
    return {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}


def at_most(tokens: int | None) -> int | None:
    """The option `max_length` that `truncate_prompt_tokens` asks for."""
    return None if tokens == -1 else tokens


def has_ids(inputs: str | list[str] | list[int] | list[list[int]]) -> bool:
    return not isinstance(inputs, str) and any(not isinstance(one, str) for one in inputs)
