"""OpenAI's files and batches: a file of requests in, one of answers and one of errors out."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.serve.batches.shelf import Shelf, purpose_of
from xlmr_ray.serve.json_body import JsonRoute
from xlmr_ray.serve.protocols.openai import error_body
from xlmr_ray.serve.requests import ErrorBody, Invalid, NotFound, Unavailable
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
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
        kept = shelf()  # before the file is read
        form = await request.form(max_files=1, max_fields=16)
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise Invalid("file", "expected a form with the file: multipart/form-data")
        if purpose != "batch":
            raise Invalid("purpose", "expected batch")
        name = (file.filename or "requests.jsonl")[:256]
        return JSONResponse(await of_store(kept.add_file, file.file, name, purpose))

    @routes.get("/v1/files", summary="The files")
    async def files(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> JSONResponse:
        kept = shelf()

        def shown() -> dict[str, Any]:
            names = [name for name in kept.file_names() if purpose in (None, purpose_of(name))]
            return page_of_list(names if order == "desc" else names[::-1], kept.file, after, limit)

        return JSONResponse(await of_store(shown))

    @routes.get("/v1/files/{name}", summary="A file's description")
    async def file(name: str) -> JSONResponse:
        return JSONResponse(await of_store(shelf().file, name))

    @routes.get("/v1/files/{name}/content", summary="A file's content")
    async def content(name: str) -> Response:
        return StreamingResponse(await of_store(shelf().content, name), media_type="application/jsonl")

    @routes.delete("/v1/files/{name}", summary="Delete a file")
    async def delete(name: str) -> JSONResponse:
        await of_store(shelf().delete_file, name)
        return JSONResponse({"id": name, "object": "file", "deleted": True})

    @routes.post("/v1/batches", summary="Compute the requests of a file")
    async def create(body: NewBatch) -> JSONResponse:
        made = await of_store(
            shelf().add_batch,
            body.endpoint,
            body.input_file_id,
            body.completion_window,
            body.metadata,
            service.limits,
        )
        service.batches_changed()
        return JSONResponse(made)

    @routes.get("/v1/batches", summary="The batches")
    async def batches(after: str | None = None, limit: Annotated[int, Query(ge=1, le=MOST)] = 20) -> JSONResponse:
        kept = shelf()
        return JSONResponse(await of_store(lambda: page_of_list(kept.batch_names(), kept.batch, after, limit)))

    @routes.get("/v1/batches/{name}", summary="How far a batch is")
    async def batch(name: str) -> JSONResponse:
        return JSONResponse(await of_store(shelf().batch, name))

    @routes.post("/v1/batches/{name}/cancel", summary="Compute no more of a batch")
    async def cancel(name: str) -> JSONResponse:
        found = await of_store(shelf().cancel, name)
        service.batches_changed()
        return JSONResponse(found)

    return routes


async def of_store(work: Callable[..., T], *arguments: Any) -> T:
    """What the store of files and batches gives, in a thread. Raises Unavailable where it fails; the log says why."""
    try:
        return await run_in_threadpool(work, *arguments)
    except (JobFailed, UserError, OSError) as error:
        log.error("files and batches: %s", error)
        raise Unavailable("the store of files and batches fails; the service's log says why") from None


def page_of_list(
    names: Sequence[str], read: Callable[[str], dict[str, Any]], after: str | None, limit: int
) -> dict[str, Any]:
    """At most `limit` of those behind the name `after`, and no other is read. Raises NotFound where that is not
    there.
    """
    if after is not None and after not in names:
        raise NotFound(f"nothing is called {after[:64]!r}", field="after")
    data: list[dict[str, Any]] = []
    more = False
    for name in names[0 if after is None else names.index(after) + 1 :]:
        if more := len(data) == limit:
            break
        with suppress(NotFound):  # is being made, or was deleted since
            data.append(read(name))
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }
