"""Cohere's embeddings."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from xlmr_ray.checkpoint.sentence import read_sentence_config
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.models import Model
from xlmr_ray.serve.protocols.body import Body, Refused, Several
from xlmr_ray.serve.protocols.cohere import error_body
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import Cutting, embedded
from xlmr_ray.serve.protocols.openai import as_base64
from xlmr_ray.serve.protocols.reply import reply
from xlmr_ray.serve.protocols.responses import CohereError, CohereVectors
from xlmr_ray.serve.requests import ErrorBody, Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.tasks.vector_precision import stored

PATHS = ("/v1/embed", "/v2/embed")
# What folders call the prompt for each type of input.
PROMPTS = {
    "search_query": ("search_query", "query"),
    "search_document": ("search_document", "document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}


def upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class Content(Body):
    type: Literal["text"]
    text: str


class Input(Body):
    """Its pieces of text are read as one, with a space between them."""

    content: Annotated[Several[Content], Field(min_length=1)]


class CohereEmbed(Body):
    """`texts`, or `inputs` of texts. Vectors have length 1. Texts longer than the model, or than `max_tokens`, are cut
    at their `END` or `START`, as there, which the header `x-truncated` tells; `NONE` refuses them. `input_type` chooses
    among the prompts of the model's folder: of a model without prompts, all types have the same vectors.
    """

    model: str | None = None
    texts: Several[str] | None = None
    inputs: Several[Input] | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"] | None = None
    embedding_types: Annotated[Several[Literal["float", "binary", "ubinary", "base64"]], Field(min_length=1)] | None = (
        None
    )
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
    async def v1_embed(body: CohereEmbed) -> Response:
        return await vectors(service, body, bare=body.embedding_types is None)

    @routes.post("/v2/embed", **documented("POST /v2/embed", CohereVectors, CohereError, summary=summary))
    async def v2_embed(body: CohereEmbed) -> Response:
        return await vectors(service, body, bare=False)

    return routes


async def vectors(service: Service, body: CohereEmbed, *, bare: bool) -> Response:
    """`bare`: a list of vectors, as the first version gives where no encoding is named."""
    served = service.find("embedding", body.model)
    field, texts = given(body)
    side = "left" if body.truncate == "START" else "right"
    answer = await embedded(
        service,
        texts,
        {
            "normalize": True,
            "precision": "float32",
            "dimensions": body.output_dimension,
            "max_length": body.max_tokens,
            "prompt_name": prompt_name(served.model, body.input_type),
        },
        Cutting(whole=body.truncate == "NONE", side=side),
        model=served.model.name,
        fields={
            "text": field,
            "dimensions": "output_dimension",
            "max_length": "max_tokens",
            "prompt_name": "input_type",
            "truncate": "truncate: END",
        },
        most=service.limits.cohere_inputs,
    )
    numbers: NDArray[np.float32] = np.asarray(answer.answers, np.float32)
    return reply(
        {
            "response_type": "embeddings_floats" if bare else "embeddings_by_type",
            "id": str(uuid.uuid4()),
            "embeddings": numbers if bare else encoded(numbers, body.embedding_types or ["float"]),
            "texts": texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": answer.tokens}},
        },
        answer,
    )


def given(body: CohereEmbed) -> tuple[str, list[str]]:
    """The field that the texts are in, and they. Raises Invalid unless it is one."""
    if (body.texts is None) == (body.inputs is None):
        raise Invalid("texts", "is wanted, or inputs, and not both")
    if body.texts is not None:
        return "texts", body.texts
    return "inputs", [" ".join(part.text for part in one.content) for one in body.inputs or []]


def prompt_name(model: Model, kind: str | None) -> str | None:
    """The folder's prompt for a type of input; None where it has no prompts. Raises Invalid where it has others."""
    folder = read_sentence_config(model.folder)
    prompts = {} if folder is None else folder.prompts
    if kind is None or not prompts:
        return None
    found = next((name for name in PROMPTS[kind] if name in prompts), None)
    if found is None:
        raise Invalid("input_type", f"the model has no prompt for it, it has: {', '.join(prompts)}")
    return found


def encoded(numbers: NDArray[np.float32], kinds: Sequence[str]) -> dict[str, Any]:
    """Vectors `(texts, width)` by the name of each encoding."""
    made: Mapping[str, Any] = {
        "float": lambda: numbers,
        "base64": lambda: [as_base64(vector) for vector in numbers],
        "binary": lambda: stored(numbers, "binary", None),
        "ubinary": lambda: stored(numbers, "ubinary", None),
    }
    return {kind: made[kind]() for kind in dict.fromkeys(kinds)}
