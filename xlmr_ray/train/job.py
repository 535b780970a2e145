"""The job file of `xlmr-ray finetune`: which data, which head, how it is trained, where it goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from xlmr_ray.engine.section import RoleKeys
from xlmr_ray.validation import Auto, Count, Section, checked, listed, read_yaml

Share = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class DataSection(RoleKeys):
    """`path`: a file, folder, glob, or a list of them, as in a job. `label`, `language`, `document` are columns, too.

    `language` stratifies a split and parts the figures; rows of one `document` stay on one side of a split. What a row
    that cannot be used does is said by `bad_rows`: it ends the call, or it is skipped and counted.
    """

    path: Annotated[list[str], BeforeValidator(listed)]
    format: str = "auto"
    text: str = "text"
    label: str = "label"
    language: str | None = None
    document: str | None = None
    bad_rows: Literal["error", "skip"] = "error"


class ValidationSection(Section):
    """Rows of a file of their own, with the columns of `train`, or a share of `train`."""

    path: Annotated[list[str] | None, BeforeValidator(listed)] = None
    format: str = "auto"
    share: Share | None = None

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.path is None) == (self.share is None):
            raise ValueError("validation: expected either a path or a share")
        return self


class EarlyStoppingSection(Section):
    """Ends the training when the validation's `metric` has not improved for `patience` epochs; the best one counts."""

    metric: Literal["auto", "loss"] = "auto"
    patience: Count = 2


class LoraSection(Section):
    """`rank` of the matrices beside each of the `modules` (by the ends of their names), whose product counts by `alpha`
    / `rank`; `dropout` of what goes into them.
    """

    rank: Count = 8
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modules: list[str] = Field(default=["query", "value"], min_length=1)


class WorkersSection(Section):
    """`workers` processes of a Ray cluster make each step together; `address` is that of a job's cluster."""

    address: str = "auto"
    workers: Count = 1


class FolderSection(Section):
    path: str


class FinetuneJob(Section):
    """`task`'s `options` are those of a job, as far as they say how texts become sequences (`max_length`, `prompt`,
    ...). `batch_size` examples make a step; `max_tokens` of them are computed at a time, and what they give is added
    up. `warmup` is a share of all steps. `checkpoint_every` seconds what was done is kept.
    """

    name: str = "finetune"
    model: str = "embedded:mini"
    task: str
    options: dict[str, Any] = Field(default_factory=dict)
    problem: Literal["auto", "single", "multi", "regression"] = "auto"
    train: DataSection
    validation: ValidationSection | None = None
    method: Literal["full", "head", "lora"] = "full"
    lora: LoraSection = LoraSection()
    output: FolderSection
    epochs: Annotated[float, Field(gt=0)] = 3
    batch_size: Count = 32
    learning_rate: Auto | Positive = "auto"
    schedule: Literal["linear", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.06
    weight_decay: NotNegative = 0.01
    clip: Positive | None = 1.0
    class_weights: Literal["balanced"] | dict[str, NotNegative] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    early_stopping: EarlyStoppingSection | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    max_tokens: Auto | Count = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    cluster: WorkersSection = WorkersSection()
    checkpoint_every: Annotated[float, Field(ge=0)] = 300.0

    @model_validator(mode="after")
    def keys_go_together(self) -> Self:
        if self.early_stopping is not None and self.validation is None:
            raise ValueError("early_stopping: there is no validation to stop by; give validation a path or a share")
        if self.method != "lora" and self.lora != LoraSection():
            raise ValueError(f"lora: is for method: lora, and the method is {self.method}")
        if self.method == "head" and self.cluster.workers > 1:
            raise ValueError("cluster.workers: method: head needs none, only the head is trained; leave it out")
        return self

    @property
    def rate(self) -> float:
        """The learning rate at its highest."""
        if self.learning_rate != "auto":
            return self.learning_rate
        return {"full": 5e-5, "lora": 5e-4, "head": 1e-3}[self.method]


def read_finetune_job(path: Path) -> dict[str, Any]:
    """The content of a job file, not yet checked. Raises UserError where it is no YAML mapping."""
    return read_yaml(path, "task, train and output")


def check_finetune_job(content: Mapping[str, Any], where: str) -> FinetuneJob:
    """The job. Raises UserError, one line, that names the key and, for an unknown one, the nearest that there is."""
    return checked(FinetuneJob, content, where)
