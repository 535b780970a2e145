"""`POST /`: the first task of the service, as clients ask it who know only one URL."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import Discriminator, Tag

from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols import huggingface, tei
from xlmr_ray.serve.protocols.body import Model
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.huggingface import labelled
from xlmr_ray.serve.protocols.responses import Label, PlainError
from xlmr_ray.serve.protocols.task_bodies import TextClassificationBody
from xlmr_ray.serve.protocols.tei import tei_labels
from xlmr_ray.serve.protocols.tei_bodies import Predict
from xlmr_ray.serve.requests import ErrorBody
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

# The routes of text-embeddings-inference that have a task to themselves.
TEI = {"embedding": "/embed", "rerank": "/rerank"}


def whose(body: Any) -> str:
    """Hugging Face's clients send `parameters`, text-embeddings-inference's do not."""
    if isinstance(body, dict):
        return "Tasks" if "parameters" in body else "TEI"
    return "Tasks" if isinstance(body, TextClassificationBody) else "TEI"


Classified = Annotated[
    Annotated[Predict, Tag("TEI")] | Annotated[TextClassificationBody, Tag("Tasks")],
    Discriminator(whose),
]


def errors(path: str) -> ErrorBody | None:
    return tei.error_body if path == "/" else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["The first task"])
    first = next((model.tasks[0] for model in service.models.values()), None)
    if first == "text-classification":

        @routes.post(
            "/", **documented("POST /", list[Label] | list[list[Label]], PlainError, summary="Labels of texts or pairs")
        )
        async def classify(body: Classified, model: Model = None) -> Response:
            if isinstance(body, TextClassificationBody):
                return await labelled(service, body, body.which(model))
            return await tei_labels(service, body, body.which(model))

        return routes
    path = TEI.get(first or "", f"/tasks/{first}")
    others = (tei if first in TEI else huggingface).router(service, settings)
    for route in others.routes:
        if isinstance(route, APIRoute) and route.path == path:
            routes.add_api_route(
                "/",
                route.endpoint,
                methods=["POST"],
                name="first_task",
                summary=route.summary,
                response_model=route.response_model,
                responses=route.responses,
                openapi_extra=route.openapi_extra,
            )
    return routes
