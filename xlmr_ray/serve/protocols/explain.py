"""What is wrong with a body, in one line: the field, what is expected, what came, and no text of the body."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.requests import Request

from xlmr_ray.serve.requests import Invalid
from xlmr_ray.validation import fields_at

NAMES = {
    "bool": "a boolean",
    "dict": "an object",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "NoneType": "null",
    "str": "a string",
}
WANTED = {
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "an object",
    "model_type": "an object",
    "string_type": "a string",
}
# How pydantic calls the members of a union where a field's name could stand.
SCALARS = {"bool", "float", "int", "none", "str"}
LONGEST = 64


def explained_request(error: RequestValidationError, request: Request) -> Invalid:
    """The first thing that is wrong; of a union, whose members each have an error, the one that got furthest."""
    errors = error.errors()
    unknown = [e for e in errors if e["type"] == "extra_forbidden"]
    deepest = max(len(path_of(e)) for e in errors)
    chosen = [e for e in errors if len(path_of(e)) == deepest]
    if unknown and not any(e["type"] == "missing" for e in chosen):
        return unknown_field(unknown[0], body_model(request))
    first = chosen[0]
    field = ".".join(map(str, path_of(first))) or "the body"
    same = [e for e in chosen if path_of(e) == path_of(first)]
    return Invalid(field, message(same))


def path_of(error: Mapping[str, Any]) -> list[str | int]:
    """The way to the field, without pydantic's names for the members of a union; `[]` for the body itself."""
    if error["type"] == "json_invalid":
        return []
    way = list(error["loc"])[1:]
    # An unknown field is called as the caller calls it, which may be anything.
    unknown = way[-1:] if error["type"] == "extra_forbidden" else []
    return [part for part in way[: len(way) - len(unknown)] if isinstance(part, int) or is_field(part)] + unknown


def is_field(part: str) -> bool:
    """Whether a part of pydantic's way is a field and not a type (`str`, `list[str]`, `Embed`) or a kind of body."""
    return part not in SCALARS and part.islower() and part.replace("_", "").isalnum()


def message(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is expected of one field, and what came."""
    first = errors[0]
    if first["type"] == "missing":
        return "is missing"
    if first["type"] in ("value_error", "json_invalid"):
        return str(first["msg"]).removeprefix("Value error, ")
    wanted = list(dict.fromkeys(WANTED.get(e["type"], str(e["msg"]).removeprefix("Input should be ")) for e in errors))
    value = first.get("input")
    got = NAMES.get(type(value).__name__, "something else")
    if isinstance(value, list | str) and not value:
        got = got.replace("a ", "an empty ", 1)
    elif isinstance(value, bool | int | float) and len(repr(value)) <= 20:
        got = repr(value).lower()
    return f"expected {' or '.join(wanted)}, got {got}"


def unknown_field(error: Mapping[str, Any], model: type[BaseModel] | None) -> Invalid:
    way = path_of(error)
    name = short_name(str(way[-1]))
    known = fields_at(model, way[:-1]) if model is not None else []
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}" if known else "leave it out"
    return Invalid(".".join(map(str, [*way[:-1], name])), f"no such field; {hint}")


def short_name(name: str) -> str:
    """A name that a caller made up, fit for a line."""
    short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in short) or "''"


def body_model(request: Request) -> type[BaseModel] | None:
    """The model that the route's body has to fit; None where there are several."""
    field = getattr(request.scope.get("route"), "body_field", None)
    annotation = getattr(getattr(field, "field_info", None), "annotation", None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
