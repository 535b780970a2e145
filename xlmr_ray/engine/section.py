"""What sections of job files and of a service's settings have in common."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import TASKS
from xlmr_ray.validation import Auto, Count, Section, error_of_key, unknown_key


class EngineKeys(Section):
    """`pre_tokenizer` is that of `XLMRobertaTokenizer.from_pretrained`; the others are those of `EngineSettings`."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    attn_implementation: str = "auto"
    max_tokens: Auto | Count = "auto"
    pre_tokenizer: Literal["xlm-roberta", "file"] | None = None
    quantization: Literal["int8", "fp8", "nf4", "fp4", "int8-weights"] | None = None
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(
            dtype=self.dtype,
            device=self.device,
            attn_implementation=self.attn_implementation,
            max_tokens=self.max_tokens,
            quantization=self.quantization,
            compile=self.compile,
        )


class TaskKeys(BaseModel):
    """A task; other keys are the task's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    task: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RoleKeys(Section):
    """Which columns of an input are read: any role of a task (`text`, `text_pair`, `question`, …) is a key whose value
    is a column; those that the tasks at hand do not need are not read.
    """

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def other_keys_are_roles(self) -> Self:
        known = {role for task in TASKS.values() for role in task.possible_roles()}
        for key, value in (self.model_extra or {}).items():
            if key not in known:
                raise unknown_key(key, sorted({*type(self).model_fields, *known}))
            if not isinstance(value, str | None):
                raise error_of_key(key, f"expected the name of a column, got {value!r}")
        return self

    def column(self, role: str) -> str | None:
        """The column of a role; None where none is named."""
        column: str | None = getattr(self, role, None)
        return column
