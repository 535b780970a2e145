"""A request's body as JSON: a strict parser, and routes that take what it has read."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from xlmr_ray.serve.requests import Invalid

# Where the parsed body stands in the ASGI scope.
PARSED = "xlmr_ray.json"
# Digits of a whole number; 64 bits have 19.
DIGITS = 19
# Of what is wrong in a body: the first is named, but where there is more, not all of it is read.
MOST_BAD = 1000


class JsonRequest(Request):
    async def json(self) -> Any:
        return self.scope[PARSED] if PARSED in self.scope else await super().json()


class JsonRoute(APIRoute):
    """A route that takes the body as the limits' own parser has read it."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def with_parsed(request: Request) -> Response:
            response: Response = await handle(JsonRequest(request.scope, request.receive))
            return response

        return with_parsed


class Bad:
    """Stands in a parsed body where something is that JSON does not allow or that no field takes."""

    def __init__(self, message: str) -> None:
        self.message = message


class Parser:
    """JSON (RFC 8259) without what parsers let pass: NaN and infinities, numbers beyond a double or 64 bits, keys twice
    in an object, lone surrogates, endless nesting.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def parse(self, body: bytes) -> Any:
        """Raises Invalid, which names the field and does not quote it."""
        found: list[Bad] = []

        def bad(message: str) -> Bad:
            if len(found) == MOST_BAD:
                raise Invalid("body", f"{message}, and more like it")
            found.append(Bad(message))
            return found[-1]

        def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
            values = dict(items)
            if len(values) < len(items):
                seen: set[str] = set()
                for key, _ in items:
                    if key in seen:
                        values[key] = bad("is there twice")
                    seen.add(key)
            return values

        def real(text: str) -> float | Bad:
            value = float(text)
            return value if math.isfinite(value) else bad("a number beyond the range of a double")

        def whole(text: str) -> int | Bad:
            return int(text) if len(text.lstrip("-")) <= DIGITS else bad(f"a whole number of more than {DIGITS} digits")

        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Invalid("body", f"byte {error.start} is not UTF-8") from None
        try:
            value = json.loads(
                text,
                parse_constant=lambda name: bad(f"{name} is not JSON"),
                parse_float=real,
                parse_int=whole,
                object_pairs_hook=pairs,
            )
        except json.JSONDecodeError as error:
            raise Invalid("body", f"is not JSON: {error.msg} at character {error.pos}") from None
        except RecursionError:
            raise Invalid("body", f"is nested more than {self.depth} deep") from None
        # Few bodies need a second look.
        if found or "\\u" in text or text.count("[") + text.count("{") > self.depth:
            self.look(value, (), 1)
        return value

    def look(self, value: Any, path: tuple[str | int, ...], depth: int) -> None:
        if isinstance(value, Bad):
            raise Invalid(dotted(path), value.message)
        if isinstance(value, str):
            check_text(value, dotted(path))
        elif isinstance(value, list | dict):
            if depth > self.depth:
                raise Invalid(dotted(path[:2]), f"is nested more than {self.depth} deep")
            if isinstance(value, list):
                for index, item in enumerate(value):
                    if not isinstance(item, int | float):
                        self.look(item, (*path, index), depth + 1)
                return
            for key, item in value.items():
                check_text(key, dotted(path))
                self.look(item, (*path, key), depth + 1)


def dotted(path: Sequence[str | int]) -> str:
    """The way to a field: `inputs.3`. Keys that the caller made up are cut."""
    return ".".join(str(part)[:64] for part in path) or "body"


def check_text(text: str, field: str) -> None:
    """Raises Invalid where a string is no text."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise Invalid(field, f"lone surrogate U+{code:04X} at character {error.start}") from None
