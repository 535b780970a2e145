"""Settings files: YAML, checked by pydantic models, what is wrong in one line that names the key."""

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from xlmr_ray.errors import UserError
from xlmr_ray.text.nearest import nearest_or_all

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
M = TypeVar("M", bound=BaseModel)


def listed(value: Any) -> Any:
    """One name counts as a list of one."""
    return [value] if isinstance(value, str) else value


def named_task(value: Any) -> Any:
    """Only a task's name counts as the task without options."""
    return {"task": value} if isinstance(value, str) else value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path, wanted: str) -> dict[str, Any]:
    """A file's mapping, not yet checked. Raises UserError where it is none; `wanted` says what it should hold."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with {wanted}, got {type(content).__name__}")
    return content


def checked(model: type[M], content: Mapping[str, Any], where: str) -> M:
    """The model of the content. Raises UserError, one line, that names the key and, for an unknown one, the nearest."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{where}: {explained(error, model)}") from None


def unknown_key(key: str, known: list[str]) -> PydanticCustomError:
    """For a validator of a section that looks at its keys itself."""
    hint = nearest_or_all(key, known, "there are:")
    return PydanticCustomError("unknown_key", "{hint}", {"key": key, "hint": hint})


def error_of_key(key: str, message: str) -> PydanticCustomError:
    """As `unknown_key`, of a key that is known."""
    return PydanticCustomError("error_of_key", "{message}", {"key": key, "message": message})


def explained(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line."""
    # A union reports each of its members; the last says what a value that is not `auto` must be, and one that is no
    # mapping is not meant for the member that takes mappings.
    wrong = error.errors()
    last = ([e for e in wrong if e["type"] not in ("literal_error", "model_type")] or wrong)[-1]
    first = next((e for e in wrong if e["type"] in ("extra_forbidden", "unknown_key")), last)
    path = [part for part in first["loc"] if isinstance(part, int) or part.replace("_", "").isalpha()]
    if first["type"] == "extra_forbidden":
        of_key = unknown_key(str(path.pop()), fields_at(model, path))
        first = {**first, "type": "unknown_key", "ctx": of_key.context or {}}
    context = first.get("ctx", {})
    key = ".".join(map(str, [*path, *([context["key"]] if "key" in context else [])]))
    if first["type"] == "unknown_key":
        return f"unknown key {key!r}{context['hint']}"
    if first["type"] == "error_of_key":
        return f"{key}: {context['message']}"
    if first["type"] == "missing":
        return f"{key!r} is missing"
    if isinstance(reason := first.get("ctx", {}).get("error"), UserError):  # it names the key itself
        return str(reason)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":  # pydantic names the class
        message = "Expected a mapping"
    return message if not key else f"{key}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


def fields_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    """The keys of the section at a path of a model; those of its innermost section that is found."""
    at = model
    for part in path:
        if isinstance(part, str) and part in at.model_fields:
            at = next(iter(section_types(at.model_fields[part].annotation)), at)
    return list(at.model_fields)


def section_types(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type holds, through lists and alternatives."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for inner in typing.get_args(annotation) for found in section_types(inner)]
