"""OpenAI's files and batches: a file of requests in, one of answers and one of errors out."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from xlmr_ray.serve.batches.shelf import Shelf
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.openai import error_body
from xlmr_ray.serve.requests import ErrorBody, Invalid, NotFound
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

ENDPOINTS = ("/v1/embeddings", "/v1/rerank", "/v1/embed")
MOST = 100  # of a list


class NewBatch(BaseModel):
    """`completion_window` is a wish: a batch is computed when nobody waits for anything, and never ends unanswered."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str
    endpoint: Literal[ENDPOINTS]  # type: ignore[valid-type]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


def errors(path: str) -> ErrorBody | None:
    return error_body if path.startswith(("/v1/files", "/v1/batches")) else None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    routes = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    def shelf() -> Shelf:
        if service.shelf is None:
            raise NotFound("this service keeps no files: its settings name no batches.folder")
        return service.shelf

    @routes.post("/v1/files", summary="Upload a file of requests")
    async def upload(request: Request) -> JSONResponse:
        kept = shelf()
        form = await request.form(max_files=1, max_fields=16)
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise Invalid("file", "expected a form with the file: multipart/form-data")
        if purpose != "batch":
            raise Invalid("purpose", "expected batch")
        name = (file.filename or "requests.jsonl")[:256]
        return JSONResponse(await run_in_threadpool(kept.add_file, file.file, name, purpose))

    @routes.get("/v1/files", summary="The files")
    async def files(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> JSONResponse:
        found = [one for one in await run_in_threadpool(shelf().files) if purpose in (None, one["purpose"])]
        return JSONResponse(page_of_list(found if order == "desc" else found[::-1], after, limit))

    @routes.get("/v1/files/{name}", summary="A file's description")
    async def file(name: str) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(shelf().file, name))

    @routes.get("/v1/files/{name}/content", summary="A file's content")
    async def content(name: str) -> Response:
        return StreamingResponse(await run_in_threadpool(shelf().content, name), media_type="application/jsonl")

    @routes.delete("/v1/files/{name}", summary="Delete a file")
    async def delete(name: str) -> JSONResponse:
        await run_in_threadpool(shelf().delete_file, name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    @routes.post("/v1/batches", summary="Compute the requests of a file")
    async def create(body: NewBatch) -> JSONResponse:
        made = await run_in_threadpool(
            shelf().add_batch, body.endpoint, body.input_file_id, body.completion_window, body.metadata
        )
        service.batches_changed()
        return JSONResponse(made)

    @routes.get("/v1/batches", summary="The batches")
    async def batches(after: str | None = None, limit: Annotated[int, Query(ge=1, le=MOST)] = 20) -> JSONResponse:
        return JSONResponse(page_of_list(await run_in_threadpool(shelf().batches), after, limit))

    @routes.get("/v1/batches/{name}", summary="How far a batch is")
    async def batch(name: str) -> JSONResponse:
        return JSONResponse(await run_in_threadpool(shelf().batch, name))

    @routes.post("/v1/batches/{name}/cancel", summary="Compute no more of a batch")
    async def cancel(name: str) -> JSONResponse:
        found = await run_in_threadpool(shelf().cancel, name)
        service.batches_changed()
        return JSONResponse(found)

    return routes


def page_of_list(found: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Those behind the one of the id `after`. Raises NotFound where that is not there."""
    names = [one["id"] for one in found]
    if after is not None and after not in names:
        raise NotFound(f"nothing is called {after[:64]!r}", field="after")
    first = 0 if after is None else names.index(after) + 1
    data = found[first : first + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": first + limit < len(found),
    }
