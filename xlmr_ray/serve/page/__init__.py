"""The page at `/`: pick a task, give it text, see the answer. Three static files, nothing from anywhere else."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

# Anyone may load these: what is asked with them needs a key like any other request.
PATHS = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/answers.js": ("answers.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def router() -> APIRouter:
    routes = APIRouter()
    for path, (name, kind) in PATHS.items():
        content = files(__name__).joinpath(name).read_bytes()
        routes.add_api_route(path, static(content, kind), methods=["GET"], include_in_schema=False)
    return routes


def static(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return serve
