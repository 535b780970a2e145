"""Cohere's embeddings."""

import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BeforeValidator, Field

from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.body import Body, ForModel, Model, Refused, Several
from xlmr_ray.serve.protocols.cohere import error_body
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import embedded, in_encoding, prompt_for
from xlmr_ray.serve.protocols.reply import reply
from xlmr_ray.serve.protocols.responses import CohereError, CohereVectors
from xlmr_ray.serve.requests import ErrorBody, Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest
from xlmr_ray.tasks.vector_precision import BYTES

PATHS = ("/v1/embed", "/v2/embed")


Encoding = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


def upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Content(Body):
    type: Literal["text"]
    text: str


class Input(Body):
    """Its pieces of text are read as one, with a space between them."""

    content: Annotated[Several[Content], Field(min_length=1)]


class CohereEmbed(ForModel):
    """`texts`, or `inputs` of texts. Vectors have length 1. Texts longer than the model, or than `max_tokens`, are cut
    at their `END` or `START`, as there, which the header `x-truncated` tells; `NONE` refuses them. `input_type` chooses
    among the prompts of the model's folder or settings: of a model without prompts, all types have the same vectors.
    `int8` and `uint8` are between the ranges that the settings name.
    """

    texts: Several[str] | None = None
    inputs: Several[Input] | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = None
    embedding_types: Annotated[Several[Encoding], Field(min_length=1)] | None = None
    truncate: Annotated[Literal["NONE", "START", "END"], BeforeValidator(upper)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    output_dimension: Annotated[int, Field(ge=1)] | None = None
    priority: Literal[0] | None = None
    images: Refused = None


def errors(path: str) -> ErrorBody | None:
    return error_body if path in PATHS else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["Cohere and Jina"])
    summary = "A vector a text, in several encodings"

    @routes.post("/v1/embed", **documented("POST /v1/embed", CohereVectors, CohereError, summary=summary))
    async def v1_embed(body: CohereEmbed, model: Model = None) -> Response:
        return await cohere_vectors(service, body, body.which(model), bare=body.embedding_types is None)

    @routes.post("/v2/embed", **documented("POST /v2/embed", CohereVectors, CohereError, summary=summary))
    async def v2_embed(body: CohereEmbed, model: Model = None) -> Response:
        return await cohere_vectors(service, body, body.which(model), bare=False)

    return routes


async def cohere_vectors(service: Service, body: CohereEmbed, model: str | None, *, bare: bool) -> Response:
    """`bare`: a list of vectors, as the first version gives where no encoding is named."""
    served = service.find("embedding", model)
    field, texts = given(body)
    side = "left" if body.truncate == "START" else "right"
    kinds = list(dict.fromkeys(body.embedding_types or ["float"]))
    answers: dict[str, Answer] = {}
    for precision in dict.fromkeys(kind if kind in BYTES else "float32" for kind in kinds):
        request = TaskRequest(
            "embedding",
            {"text": texts},
            {
                "normalize": True,
                "precision": precision,
                "dimensions": body.output_dimension,
                "max_length": body.max_tokens,
                "prompt_name": prompt_for(service, served.model, body.input_type),
            },
            model=served.model.name,
            fields={
                "text": field,
                "dimensions": "output_dimension",
                "max_length": "max_tokens",
                "precision": "embedding_types",
                "prompt_name": "input_type",
            },
            cutting=Cutting(whole=body.truncate == "NONE", side=side, hint="truncate: END"),
        )
        answers[precision] = await embedded(service, request, service.limits.cohere_inputs)
    answer = next(iter(answers.values()))
    by_kind = {
        kind: in_encoding(np.asarray(answers.get(kind, answers.get("float32", answer)).answers), kind) for kind in kinds
    }
    return reply(
        {
            "response_type": "embeddings_floats" if bare else "embeddings_by_type",
            "id": str(uuid.uuid4()),
            "embeddings": by_kind["float"] if bare else by_kind,
            "texts": texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.tokens}},
        },
        answer,
    )


def given(body: CohereEmbed) -> tuple[str, list[str]]:
    """The field that the texts are in, and they. Raises Invalid unless it is one."""
    if (body.texts is None) == (body.inputs is None):
        raise Invalid("texts", "expected either texts or inputs: one of the two")
    if body.texts is not None:
        return "texts", body.texts
    return "inputs", [" ".join(part.text for part in one.content) for one in body.inputs or []]
