"""What the bodies of all protocols are made of: strict types, no unknown field, options by name."""

from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from xlmr_ray.serve.requests import Invalid
from xlmr_ray.serve.task_request import Cutting


class Body(BaseModel):
    """Nothing is read as something else: `"1"` is no number, `true` no 1, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def refuse(value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError("this service has no such option: leave it out")


Direction = Annotated[
    Literal["left", "right"],
    BeforeValidator(lower),
    Field(description="The end that is cut off, in any case of letters (`Left`)."),
]
# An option of the protocol that nothing here stands behind. It is refused by its own name; null and false say nothing.
Refused = Annotated[
    None, BeforeValidator(refuse), Field(description="Not supported: anything but null or false is refused.")
]
Count = Annotated[int, Field(ge=1, le=100_000)]
# vLLM's way to have texts cut.
Cut = Annotated[Literal[-1] | Annotated[int, Field(ge=1)], Field(description="Tokens that are kept; -1: the model's.")]
T = TypeVar("T")
# The first item that is wrong ends the reading: an error for each of half a million takes gigabytes.
Several = Annotated[list[T], Field(fail_fast=True)]
Texts = str | Several[str]
Long = Annotated[
    Literal["cut", "windows"],
    Field(description="Texts longer than the model: cut, or read in windows."),
]
Model = Annotated[
    str | None,
    Query(description="Which of the models, by its name in `/info`; the first that has the task if not given."),
]


class HubOptions(Body):
    """How Hugging Face's own service is to go about it. Changes nothing here."""

    wait_for_model: bool | None = None
    use_cache: bool | None = None
    use_gpu: bool | None = None
    dont_load_model: bool | None = None


class Nothing(Body):
    """No field at all."""


class ForModel(Body):
    """A body that may name its model, as the path may."""

    model: Annotated[str | None, Field(description="As `?model=` of the path.")] = None

    def which(self, model: str | None) -> str | None:
        """The model that is named in the body or in the path. Raises Invalid for two."""
        if self.model is not None and model not in (None, self.model):
            raise Invalid("model", "the body and the path name two models")
        return model or self.model


class Truncatable(Body):
    """Texts longer than the model are refused; with `truncate` they are cut."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None

    @property
    def cutting(self) -> Cutting:
        return Cutting(whole=not self.truncate, side=self.truncation_direction, hint="truncate: true")


class Asked(ForModel):
    """What all bodies of text-embeddings-inference's and Hugging Face's forms may have."""

    options: HubOptions | None = None


class Parameters(Body):
    """Options of a task, by the names that the task has for them."""

    def options(self) -> dict[str, Any]:
        """What was said; null is the same as nothing."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}
