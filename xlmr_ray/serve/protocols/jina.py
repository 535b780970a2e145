"""Vectors of tokens as Jina's clients ask for them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from numpy.typing import NDArray
from pydantic import Field

from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.body import Body, ForModel, Model, Several
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.embeddings import in_encoding, prompt_among
from xlmr_ray.serve.protocols.openai import usage
from xlmr_ray.serve.protocols.reply import ask, reply
from xlmr_ray.serve.protocols.responses import JinaError, MultiVectors
from xlmr_ray.serve.requests import ErrorBody, ServiceError
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest

PATH = "/v1/multi-vector"

Encoding = Literal["float", "base64", "binary", "ubinary"]


class Text(Body):
    """`id` changes nothing."""

    text: str
    id: str | None = None


class MultiVectorBody(ForModel):
    """Vectors have length 1. Texts longer than the model are cut, as there, which the header `x-truncated` tells;
    `truncate: false` refuses them. `input_type` chooses among the prompts of the model's folder: of a model without
    prompts, queries and documents have the same vectors. `embedding_type` (or `encoding_format`) is that of the
    numbers; of a list of types, each vector comes in all of them, by type.
    """

    input: str | Several[str | Text]
    input_type: Literal["query", "document"] | None = None
    embedding_type: Encoding | Annotated[Several[Encoding], Field(min_length=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate: bool | None = None
    normalized: Literal[True] | None = None


def error_body(error: ServiceError) -> Mapping[str, Any]:
    return {"detail": str(error)}


def errors(path: str) -> ErrorBody | None:
    return error_body if path == PATH else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["Cohere and Jina"])
    described = documented(f"POST {PATH}", MultiVectors, JinaError, summary="A vector a token of each text")

    @routes.post(PATH, **described)
    async def multi_vector(body: MultiVectorBody, model: Model = None) -> Response:
        return await multi_vectors(service, body, body.which(model))

    return routes


async def multi_vectors(service: Service, body: MultiVectorBody, model: str | None) -> Response:
    served = service.find("multi-vector", model)
    given = [body.input] if isinstance(body.input, str) else body.input
    options = {
        "normalize": True,
        "precision": "float32",
        "dimensions": body.dimensions,
        "prompt_name": prompt_among(served.bound.known_prompts or {}, body.input_type),
    }
    request = TaskRequest(
        "multi-vector",
        {"text": [one if isinstance(one, str) else one.text for one in given]},
        {name: value for name, value in options.items() if value is not None},
        model=served.model.name,
        fields={"text": "input", "prompt_name": "input_type"},
        once=("input",) if isinstance(body.input, str) else (),
        cutting=Cutting(whole=body.truncate is False, hint="truncate: true"),
    )
    answer = await ask(service, request, service.limits.cohere_inputs)
    kinds = body.embedding_type or body.encoding_format or "float"
    data = [
        {"object": "embeddings", "index": index, "embeddings": in_encodings(one, kinds)}
        for index, one in enumerate(answer.answers)
    ]
    return reply({"object": "list", "model": served.model.name, "data": data, "usage": usage(answer)}, answer)


def in_encodings(vectors: NDArray[np.float32], kinds: str | list[Encoding]) -> Any:
    """Vectors `(tokens, width)` of a text in an encoding, or in several by their names."""
    if isinstance(kinds, str):
        return in_encoding(vectors, kinds)
    return {kind: in_encoding(vectors, kind) for kind in kinds}
