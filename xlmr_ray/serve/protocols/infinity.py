"""infinity's paths, which have no `/v1`; its `/rerank` is beside text-embeddings-inference's (`tei.py`)."""

import time
import uuid
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.body import ForModel, Model, Texts
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.openai import TRUNCATE, Embeddings, error_body, model_cards, openai_vectors, usage
from xlmr_ray.serve.protocols.reply import ask, reply
from xlmr_ray.serve.protocols.responses import Classifications, ModelCards, OpenAIError, Vectors
from xlmr_ray.serve.requests import ErrorBody, Invalid
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest
from xlmr_ray.validation import listed

PATHS = ("/embeddings", "/classify", "/models")


class InfinityEmbeddings(Embeddings):
    """As `/v1/embeddings`, but that texts longer than the model are cut, as there, which the header `x-truncated`
    tells; `truncate: false` refuses them. `output_dimension` is another name of `dimensions`.
    """

    modality: Literal["text"] | None = None
    output_dimension: Annotated[int, Field(ge=1)] | None = None


class Classify(ForModel):
    """All labels of each text, best first. `raw_scores`: the head's numbers as they are. Texts longer than the model
    are cut, which the header `x-truncated` tells.
    """

    input: Texts
    raw_scores: bool | None = None
    user: str | None = None


def errors(path: str) -> ErrorBody | None:
    return error_body if path in PATHS else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["infinity"])

    @routes.post("/embeddings", **documented("POST /embeddings", Vectors, OpenAIError, summary="A vector a text"))
    async def embeddings(body: InfinityEmbeddings, model: Model = None) -> Response:
        if None not in (body.dimensions, body.output_dimension) and body.dimensions != body.output_dimension:
            raise Invalid("output_dimension", "is another than dimensions")
        chosen = body.model_copy(update={"dimensions": body.dimensions or body.output_dimension})
        cutting = Cutting(whole=body.truncate is False, side=body.truncation_side, hint=TRUNCATE)
        return await openai_vectors(service, chosen, body.which(model), cutting)

    @routes.post(
        "/classify", **documented("POST /classify", Classifications, OpenAIError, summary="Scores of all labels")
    )
    async def classify(body: Classify, model: Model = None) -> Response:
        served = service.find("text-classification", body.which(model))
        request = TaskRequest(
            "text-classification",
            {"text": listed(body.input)},
            {"top_k": None} | ({"function_to_apply": "none"} if body.raw_scores else {}),
            model=served.model.name,
            fields={"text": "input", "function_to_apply": "raw_scores"},
            once=("input",) if isinstance(body.input, str) else (),
        )
        answer = await ask(service, request, service.limits.openai_inputs)
        made = {"id": str(uuid.uuid4()), "created": int(time.time())}
        return reply(
            {"object": "classify", "data": answer.answers, "model": served.model.name, "usage": usage(answer), **made},
            answer,
        )

    @routes.get("/models", **documented("GET /models", ModelCards, OpenAIError, summary="The models"))
    async def models() -> ModelCards:
        return model_cards(service)

    return routes
