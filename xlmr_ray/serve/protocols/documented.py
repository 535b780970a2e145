"""What the OpenAPI document tells of a route: its answer, its errors, and examples (`examples.json`), which are those
of the embedded checkpoint and are tested.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

STATUSES = {
    400: "A text is empty.",
    401: "No valid key.",
    404: "No such model, or none with this task.",
    408: "The request took longer than it may.",
    413: "The body, the inputs or their tokens are too many.",
    415: "The body is not JSON.",
    422: "The body is wrong: the message names the field.",
    424: "The model failed.",
    429: "Too many requests wait: try again after the seconds of Retry-After.",
    503: "The service starts, stops or is out of order.",
}
TIMES = "Whole milliseconds"
HEADERS = {
    "x-compute-tokens": "Tokens that went through the model",
    "x-compute-time": f"{TIMES}, without the queue",
    "x-total-time": TIMES,
    "x-tokenization-time": TIMES,
    "x-queue-time": TIMES,
    "x-inference-time": TIMES,
    "x-truncated": "The indices of the inputs that were cut at the model's length; absent if none was",
}


@cache
def examples() -> dict[str, dict[str, dict[str, Any]]]:
    """`"POST /embed"` -> name -> `request` and `response`."""
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_name("examples.json").read_text())
    return loaded


def documented(route: str, answer: Any, error: type[BaseModel], *, summary: str, show: bool = True) -> dict[str, Any]:
    """The keywords of a route's decorator; `route` is method and path."""
    named = examples().get(route, {})
    ok: dict[str, Any] = {
        "description": "The answer",
        "headers": string_headers(HEADERS) if route.startswith("POST") else {},
    }
    if named:
        ok["content"] = {"application/json": {"examples": values(named, "response")}}
    arguments: dict[str, Any] = {
        "summary": summary,
        "response_model": answer,
        "responses": {200: ok} | {s: {"model": error, "description": text} for s, text in STATUSES.items()},
        "include_in_schema": show,
    }
    if route.startswith("POST"):
        content = {"application/json": {"examples": values(named, "request")}} if named else {}
        arguments["openapi_extra"] = {"requestBody": {"content": content}}
    return arguments


def values(named: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any]:
    return {name: {"value": example[part]} for name, example in named.items()}


def string_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()}


def with_names_of_tasks(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, in which a body is called as the task that it asks for: generated clients have the name."""
    text = re.sub(r'"(#/components/schemas/)?([A-Z]\w+)Body"', r'"\1\2"', json.dumps(document))
    renamed: dict[str, Any] = json.loads(text)
    return renamed
