"""The service behind HTTP: one ASGI application of the protocols' routes, and what all of them share in front of it."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from xlmr_ray.serve import page
from xlmr_ray.serve.batches.runner import BatchRunner
from xlmr_ray.serve.json_body import PARSED, Parser
from xlmr_ray.serve.keys import PUBLIC, Keys
from xlmr_ray.serve.logs import log_failure
from xlmr_ray.serve.members import check_members, check_parts
from xlmr_ray.serve.metrics import CONTENT_TYPE, FAILURES, IN_FLIGHT, LATENCY, REQUESTS
from xlmr_ray.serve.protocols.documented import HEADERS, with_names_of_tasks
from xlmr_ray.serve.protocols.explain import explained_request
from xlmr_ray.serve.requests import (
    BACKGROUND,
    CURRENT,
    FRONT_HEADER,
    FRONT_VARIABLE,
    Context,
    ErrorBody,
    Misdirected,
    NotFound,
    Overloaded,
    ServiceError,
    TimedOut,
    TooLarge,
    Unavailable,
    WrongMethod,
    WrongType,
    request_id,
)
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.tei_metrics import TeiNames
from xlmr_ray.serve.tracing import note, request_span

log = logging.getLogger("xlmr_ray.serve.access")

# Bytes of a body that are read in the event loop; longer ones in a thread.
IN_LOOP = 32_768
# Of a form around a file.
FORM = 65_536
# Bytes that are still read of a body that is too large, and seconds in which none comes.
READ_ON, READ_ON_S = 8_000_000, 1.0
# Each has `router(service, settings)` and `errors(path)`: its body of an error where the path is the protocol's.
PROTOCOLS = ("openai", "batches", "infinity", "vllm", "cohere", "cohere_embed", "jina", "huggingface", "root", "tei")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Gone(Exception):
    """The client has left."""


def build_app(service: Service, settings: ServeSettings) -> FastAPI:
    """The ASGI application of a service. Its settings may change later: limits and keys are the service's own."""
    protocols = [import_module(f"xlmr_ray.serve.protocols.{name}") for name in PROTOCOLS]
    shapes: list[Callable[[str], ErrorBody | None]] = [protocol.errors for protocol in protocols]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Where no deployment of Ray's does it."""
        computing = asyncio.create_task(compute_batches(app, service))
        yield
        computing.cancel()

    app = FastAPI(
        lifespan=lifespan,
        title="xlmr-ray",
        summary="XLM-RoBERTa: embeddings, classification, reranking, tagging and more",
        strict_content_type=False,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    routers = [running(service), page.router(), *(protocol.router(service, settings) for protocol in protocols)]
    routes = [route for part in (app, *routers) for route in part.routes if isinstance(route, Route)]
    for router in routers:
        app.include_router(router)

    async def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            error = explained_request(error, request)
        if isinstance(error, HTTPException) and error.status_code == 405:
            error = WrongMethod(allowed(routes, request.url.path))
        return answer_to(understood(error), request.url.path, shapes)

    for kind in (ServiceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, failed)
    app.openapi_schema = with_names_of_tasks(app.openapi())
    paths = frozenset([*app.openapi_schema["paths"], *page.PATHS])
    app.add_middleware(Front, service=service, shapes=shapes, paths=paths)
    if settings.cors.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", *HEADERS],
        )
    return app


async def compute_batches(app: App, service: Service) -> None:
    """Computes what batches there are, as long as it is not cancelled; nothing where the settings name no folder."""
    if service.shelf is None:
        return
    runner, loop = BatchRunner(app, service, service.shelf), asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(runner.woken.set)

    service.batches_changed = wake
    await runner.run()


def allowed(routes: Sequence[Route], path: str) -> tuple[str, ...]:
    """The methods that a path takes."""
    methods = {one for route in routes if route.path_regex.match(path) for one in route.methods or ()}
    return tuple(sorted(methods | ({"HEAD"} if "GET" in methods else set())))


def running(service: Service) -> APIRouter:
    """What load balancers and Prometheus ask."""
    router = APIRouter(tags=["running"])
    tei = CollectorRegistry()
    tei.register(TeiNames(service.metrics.made))

    @router.get("/health", summary="200 while the engines compute, 503 when one hangs or is broken")
    async def health() -> JSONResponse:
        trouble = service.trouble()
        return JSONResponse({"status": trouble or "ok"}, 503 if trouble else 200)

    @router.get("/ready", summary="200 once the models are loaded and warm, 503 before and while shutting down")
    async def ready() -> JSONResponse:
        state = "shutting down" if service.closing else "ready" if service.ready else "loading"
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    @router.get("/metrics", summary="Prometheus' text format", response_class=PlainTextResponse)
    async def metrics() -> Response:
        service.tell_state()
        return Response(service.metrics.text() + generate_latest(tei), media_type=CONTENT_TYPE)

    return router


def understood(error: Exception) -> ServiceError:
    """The error that the client gets. What is nobody's mistake but ours is logged, without its message, which might
    quote a text.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFound("no such path; /openapi.json lists those there are")
        made = ServiceError(str(error.detail))
        made.status = error.status_code
        return made
    log_failure(logging.getLogger(__name__), "a request", error)
    return ServiceError("the service failed; its log has more under this request's id")


async def read_on(receive: Receive, message: Message) -> None:
    """Reads what comes of a body after `message`, and forgets it. Clients that are answered while they send (Go's, and
    with it Caddy) take the connection's end for a failure and never see the answer; of a large rest they have to.
    """
    size = 0
    with suppress(TimeoutError):
        while message.get("more_body") and size <= READ_ON:
            message = await asyncio.wait_for(receive(), READ_ON_S)
            size += len(message.get("body", b""))


def replayed(body: bytes) -> Receive:
    """A body that has been read, to be read again."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return receive


def plain_body(error: ServiceError) -> Mapping[str, Any]:
    """Where no protocol has its own form."""
    return {"error": str(error), "error_type": error.kind}


def answer_to(error: ServiceError, path: str, shapes: list[Callable[[str], ErrorBody | None]]) -> Response:
    """The response for an error, in the shape of the path's protocol."""
    body = next((found for shape in shapes if (found := shape(path))), plain_body)
    context = CURRENT.get()
    if context is not None:
        context.facts["failure"] = error.kind
    return JSONResponse(dict(body(error)), error.status, headers=error.headers)


def parsed_body(body: bytes, depth: int) -> Any:
    """The body's JSON. Raises Invalid or TooLarge."""
    check_parts(body)
    value = Parser(depth).parse(body)
    check_members(value)
    return value


def plain_path(path: str) -> str:
    """`//embed` and `/embed/`, as clients make them of a base URL that ends in a slash, are `/embed`. They are answered
    and not redirected: behind a proxy that takes TLS off, a redirect would name an address without it.
    """
    return "/" + "/".join(part for part in path.split("/") if part)


class Front:
    """In front of the routes: request ids, keys, the body's limits, how many at once, time, clients that leave, a line
    of the log and the metrics.
    """

    def __init__(
        self, app: App, service: Service, shapes: list[Callable[[str], ErrorBody | None]], paths: frozenset[str]
    ) -> None:
        self.app, self.service, self.shapes, self.paths = app, service, shapes, paths
        self.keys = Keys(service.settings.keys)
        self.front = os.environ.get(FRONT_VARIABLE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "path": plain_path(scope["path"])}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope.get(BACKGROUND):
            await self.background(scope, headers, receive, send)
            return
        context = Context(request_id(headers.get("x-request-id")), time.monotonic() + self.service.limits.request_s)
        token = CURRENT.set(context)
        sent: list[int] = []
        head, whole = scope["method"] == "HEAD", False

        async def read() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or not message.get("more_body")
            return message

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])
                message["headers"] = [*message.get("headers", []), (b"x-request-id", context.id.encode())]
                if message["status"] in (408, 413) and not whole:  # what is still to come of the body is not waited for
                    message["headers"].append((b"connection", b"close"))
            elif head:
                message = {**message, "body": b""}
            await send(message)

        self.service.in_flight += 1
        try:
            with request_span(f"{scope['method']} {scope['path']}", headers) as trace:
                if trace:
                    context.facts["trace"] = trace
                try:
                    # HEAD is GET without the body, on every path.
                    inner = {**scope, "method": "GET"} if head else scope
                    await self.serve(inner, headers, read, named, context)
                except Gone:
                    context.facts["failure"] = "client_left"
                    sent.append(499)
                except Exception as error:
                    shown = understood(error)
                    if not sent:
                        await answer_to(shown, scope["path"], self.shapes)(scope, receive, named)
                note(**{"http.response.status_code": sent[0] if sent else 0})
        finally:
            self.service.in_flight -= 1
            CURRENT.reset(token)
            self.record(scope, context, sent[0] if sent else 499)

    async def background(self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """A request of a batch: it takes nobody's place, and has as long as it needs."""
        token = CURRENT.set(Context(request_id(None), None, background=True))
        try:
            body = await self.body(scope, headers, receive)
            await self.app(scope, replayed(body), send)
        except Exception as error:
            await answer_to(understood(error), scope["path"], self.shapes)(scope, receive, send)
        finally:
            CURRENT.reset(token)

    async def upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A file, which goes through as it comes."""
        limit, size = self.service.settings.batches.file_bytes, 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit + FORM:
                await read_on(receive, message)
                raise TooLarge(f"the file has more than {limit} bytes, which is the most", field="file")
            return message

        await self.app(scope, counted, send)

    async def serve(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send, context: Context
    ) -> None:
        path, limits = scope["path"], self.service.limits
        if self.front is not None and headers.get(FRONT_HEADER) != self.front:
            raise Misdirected("this replica is of another service")
        if path in PUBLIC or (path in page.PATHS and scope["method"] == "GET"):
            await self.app(scope, receive, send)
            return
        if self.keys.settings != self.service.settings.keys:
            self.keys = Keys(self.service.settings.keys)
        self.keys.check(headers.get("authorization"))
        if self.service.closing:
            raise Unavailable("the service is shutting down")
        if self.service.in_flight > limits.concurrent_requests:
            raise Overloaded(f"{limits.concurrent_requests} requests are being answered, which is the most", 1)
        assert context.deadline is not None
        sends_file = (scope["method"], path) == ("POST", "/v1/files")
        # They move files, and nothing of them waits for an engine.
        of_files = path.startswith(("/v1/files", "/v1/batches"))
        seconds = self.service.settings.batches.upload_s if of_files else limits.request_s
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + seconds):
                if sends_file:
                    await self.upload(scope, receive, send)
                    return
                body = await self.body(scope, headers, receive)
                await self.until_gone(scope, body, receive, send)
        except TimeoutError:
            raise TimedOut(f"the request took more than {seconds:g} s") from None

    async def body(self, scope: Scope, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The whole body, its JSON parsed into the scope. Raises TooLarge as soon as that is known."""
        limit = self.service.limits.body_bytes
        too_large = TooLarge(f"the body has more than {limit} bytes, which is the most")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > limit:
            if int(length) <= limit + READ_ON:
                await read_on(receive, {"more_body": True})
            raise too_large
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                parts.clear()
                await read_on(receive, message)
                raise too_large
            if not message.get("more_body"):
                break
        body = b"".join(parts)
        if body:
            kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
            if kind != "application/json" and not kind.endswith("+json"):
                raise WrongType("the body must be JSON: content-type: application/json")
            if headers.get("content-encoding", "identity") != "identity":
                raise WrongType("the body must not be compressed")
            parse = partial(parsed_body, body, self.service.limits.json_depth)
            if len(body) > IN_LOOP:
                scope[PARSED] = await asyncio.get_running_loop().run_in_executor(self.service.reading, parse)
            else:
                scope[PARSED] = parse()
        return body

    async def until_gone(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """The routes, stopped when the client leaves: then nothing of the request is computed any more."""
        given = False

        async def again() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.shield(left)
            return {"type": "http.disconnect"}

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        left = asyncio.create_task(gone())
        routes = asyncio.create_task(self.run(scope, again, send))
        try:
            await asyncio.wait({routes, left}, return_when=asyncio.FIRST_COMPLETED)
            if not routes.done():
                raise Gone
            await routes
        finally:
            for task in (routes, left):
                task.cancel()
            await asyncio.gather(routes, left, return_exceptions=True)

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    def record(self, scope: Scope, context: Context, status: int) -> None:
        """A request has ended: the metrics, and one line of the log."""
        route = scope["path"] if scope["path"] in self.paths else "none"  # any other is the caller's own text
        seconds = time.monotonic() - context.began
        metrics = self.service.metrics
        metrics.tell(REQUESTS, 1, route, str(status))
        metrics.tell(LATENCY, seconds, route)
        metrics.tell(IN_FLIGHT, self.service.in_flight)
        if "failure" in context.facts:
            metrics.tell(FAILURES, 1, context.facts["failure"])
        if route in PUBLIC and status < 400:
            return
        facts = {"request_id": context.id, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={"facts": facts | {"seconds": round(seconds, 6)} | context.facts})
