"""What the bodies of all protocols are made of: strict types, no unknown field, options by name."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Body(BaseModel):
    """Nothing is read as something else: `"1"` is no number, `true` no 1, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def refused(value: Any) -> None:
    if value is not None and value is not False:
        raise ValueError("this service has no such option: leave it out")


Direction = Annotated[
    Literal["left", "right"],
    BeforeValidator(lower),
    Field(description="The end that is cut off, in any case of letters (`Left`)."),
]
# An option of the protocol that nothing here stands behind. It is refused by its own name; null and false say nothing.
Refused = Annotated[
    None, BeforeValidator(refused), Field(description="Not supported: anything but null or false is refused.")
]
Count = Annotated[int, Field(ge=1, le=100_000)]
Texts = str | list[str]
Long = Annotated[
    Literal["cut", "windows"],
    Field(description="Texts longer than the model: cut, or read in windows."),
]
Model = Annotated[
    str | None,
    Query(description="Which of the models, by its name in `/info`; the first that has the task if not given."),
]


class Parameters(Body):
    """Options of a task, by the names that the task has for them."""

    def options(self) -> dict[str, Any]:
        """What was said; null is the same as nothing."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}


def listed(inputs: str | Sequence[str]) -> list[str]:
    return [inputs] if isinstance(inputs, str) else list(inputs)
