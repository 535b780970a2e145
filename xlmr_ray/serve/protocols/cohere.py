"""Reranking as Cohere's and Jina's clients ask for it."""

import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.body import Cut, ForModel, Model, Refused, Several
from xlmr_ray.serve.protocols.documented import documented
from xlmr_ray.serve.protocols.reply import ask, check_count, reply
from xlmr_ray.serve.protocols.responses import CohereError, Rerankings
from xlmr_ray.serve.requests import ErrorBody, Invalid, ServiceError
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import Cutting, TaskRequest
from xlmr_ray.tasks.rerank import rerank

PATHS = ("/v1/rerank", "/v2/rerank")


class DocumentInput(BaseModel):
    """Its `text` is read; its other fields come back with it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    text: str


class Reranking(ForModel):
    """Documents longer than the model are cut, as there, which the header `x-truncated` tells; `truncation: false`
    refuses them, `truncate_prompt_tokens` (vLLM's) cuts query and document at so many tokens. Of `rank_fields`,
    documents have only `text`, and each is read in one piece. `raw_scores`: the head's numbers as they are.
    """

    query: str
    documents: Several[str | DocumentInput]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    truncation: bool | None = None
    rank_fields: Several[str] | None = None
    max_chunks_per_doc: int | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: Cut | None = None
    raw_scores: bool | None = None
    relevant_spans: Refused = None
    priority: int | None = None


def error_body(error: ServiceError) -> Mapping[str, Any]:
    return {"message": str(error)}


def errors(path: str) -> ErrorBody | None:
    return error_body if path in PATHS else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["Cohere and Jina"])
    for path in PATHS:
        route = documented(
            f"POST {path}", Rerankings, CohereError, summary="Documents by how well they answer a query, best first"
        )

        async def answer(body: Reranking, model: Model = None) -> Response:
            return await reranked(service, body, body.which(model))

        routes.post(path, name=path.strip("/").replace("/", "_"), **route)(answer)
    return routes


async def reranked(service: Service, body: Reranking, model: str | None, *, plain: bool = False) -> Response:
    """`plain`: in infinity's form, in which a document that is a text comes back as a text."""
    served = service.find("rerank", model)
    most = service.limits.cohere_inputs
    check_count(service, body.documents, "documents", most)
    check(body, served.model.max_length)
    length = None if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    request = TaskRequest(
        "rerank",
        {"text": [body.query] * len(texts), "text_pair": texts},
        ({} if length is None else {"max_length": length}) | ({"function_to_apply": "none"} if body.raw_scores else {}),
        model=served.model.name,
        fields={
            "text": "query",
            "text_pair": "documents",
            "max_length": "truncate_prompt_tokens",
            "function_to_apply": "raw_scores",
        },
        once=("query",),
        cutting=Cutting(whole=body.truncation is False, hint="truncation: true"),
    )
    answer = await ask(service, request, most)
    results = rerank(lambda pairs: answer.answers, body.query, texts, top_n=body.top_n)
    if body.return_documents:
        for one in results:
            given = body.documents[one["index"]]
            text = given if plain else {"text": given}
            one["document"] = text if isinstance(given, str) else given.model_dump()
    return reply(
        ({"object": "rerank", "created": int(time.time())} if plain else {})
        | {
            "id": str(uuid.uuid4()),
            "model": served.model.name,
            "results": results,
            "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
            "meta": {"api_version": {"version": "2"}},
        },
        answer,
    )


def check(body: Reranking, max_length: int) -> None:
    """Raises Invalid for options that would change the answer and cannot."""
    if body.rank_fields not in (None, ["text"]):
        raise Invalid("rank_fields", 'only ["text"] can be ranked by')
    if body.max_chunks_per_doc not in (None, 1):
        raise Invalid("max_chunks_per_doc", "a document is read in one piece: 1, or leave it out")
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < max_length:
        raise Invalid("max_tokens_per_doc", f"documents are cut at the model's {max_length} tokens and no earlier")
    if body.priority not in (None, 0):
        raise Invalid("priority", "all requests have the same: 0, or leave it out")
