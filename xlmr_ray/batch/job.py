"""The job file: what goes in, which tasks, where it comes out. One model; unknown keys are refused with the nearest
known one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    SkipValidation,
    model_validator,
)

from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.lake.target import TableTarget, table_target
from xlmr_ray.engine.section import EngineKeys, RoleKeys, TaskKeys
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import TASKS
from xlmr_ray.validation import Auto, Count, Section, checked, listed, named_task, read_yaml


def known_format(name: str) -> str:
    if name not in ("auto", *READERS):
        raise ValueError(f"expected one of auto, {', '.join(READERS)}")
    return name


def whole_above_one(gpus: float) -> float:
    if gpus > 1 and gpus != int(gpus):
        raise ValueError("expected a part of one GPU, or a whole number of them")
    return gpus


class InputSection(RoleKeys):
    """`path`: a file, folder, glob, or a list of them; or a table, read at its `version`.

    `keep`: names of columns, or by name what each is called in the output. The column of `choices` holds lists of
    strings, that of `spans` lists of [start, end], or their JSON; kept beside, they come out as JSON. A row of more
    than `max_row_bytes` is an error row: bytes of its line or record, in Parquet of its strings that are read.
    `deleted`: in incremental runs, whether the rows of inputs that are not found any more stay in the published table
    or go. `limit`: only the first so many rows, in the order of the plan. A format that has options takes them under
    its name: `csv: {delimiter: ";"}`.
    """

    path: Annotated[list[str], BeforeValidator(listed)]
    version: int | None = None
    format: Annotated[str, AfterValidator(known_format)] = "auto"
    text: str = "text"
    id: str | None = None
    keep: Annotated[list[str] | dict[str, str], BeforeValidator(listed), Field(default_factory=list)]
    max_row_bytes: Annotated[int, Field(ge=1, le=64 << 20)] = 64 << 20
    deleted: Literal["keep", "drop"] = "keep"
    limit: Count | None = None
    formats: Annotated[dict[str, SerializeAsAny[SkipValidation[Reader]]], Field(default_factory=dict, repr=False)]

    @model_validator(mode="before")
    @classmethod
    def options_of_formats(cls, content: Any) -> Any:
        """Options of a format, `csv: {delimiter: ";"}`, to the reader that has them."""
        if not isinstance(content, dict):
            return content
        named = {name for name, reader in READERS.items() if type(reader).model_fields and name in content}
        given = {**content.get("formats", {}), **{name: content[name] for name in named}}
        found = {name: checked(type(READERS[name]), given[name], f"input.{name}") for name in READERS if name in given}
        return {**{key: value for key, value in content.items() if key not in named}, "formats": found}

    @property
    def kept(self) -> dict[str, str]:
        """The kept columns of the input, each with its name in the output. Raises UserError for one that is there
        twice.
        """
        if isinstance(self.keep, dict):
            return self.keep
        if len(set(self.keep)) < len(self.keep):
            raise UserError("input.keep: a column is named twice")
        return {name: name for name in self.keep}

    @property
    def readers(self) -> Mapping[str, Reader]:
        """By format, with the job's options."""
        return {**READERS, **self.formats}


class TaskSection(TaskKeys):
    """`adapter` is one of the job's, by name."""

    name: str | None = None
    model: str | None = None
    adapter: str | None = None


class OutputSection(Section):
    """`compact`: small files are merged before a run is published. `table`: also as a table, each published run as one
    commit: a format, or more of it (`TableTarget`).
    """

    path: str
    compact: bool = False
    table: Annotated[TableTarget | None, BeforeValidator(table_target)] = None

    @model_validator(mode="after")
    def files_of_a_table_stay(self) -> Self:
        if self.compact and self.table is not None:
            raise ValueError("compact: not beside table, which names the files as the shards wrote them")
        return self


class EngineSection(EngineKeys):
    """`device: auto` is GPUs where there are some."""

    max_length: Auto | Count = "auto"


class EncoderRange(Section):
    """`min` encoders that a job begins with at least, and `max` that it grows to with its cluster."""

    min: Count = 1
    max: Count

    @model_validator(mode="after")
    def not_turned_round(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is more than max: {self.max}")
        return self


class ClusterSection(Section):
    """`address: auto` is `RAY_ADDRESS` where that is set, and a cluster of this machine's own else. `repeats_bytes` of
    results are kept for texts that come again in later shards; `auto`: where a sample says that it pays
    (`batch/repeats.py`), and 0: none.
    """

    address: str = "auto"
    tokenizers: Auto | Count = "auto"
    encoders: Auto | Count | EncoderRange = "auto"
    gpus_per_encoder: Auto | Annotated[float, Field(ge=0), AfterValidator(whole_above_one)] = "auto"
    shard_rows: Auto | Count = "auto"
    repeats_bytes: Auto | Annotated[int, Field(ge=0)] = "auto"


class ErrorsSection(Section):
    """`max_fraction` of error rows ends the job; `empty` texts are an error row each, or scored like any other.

    `timeout` in seconds is what a row may take in the tokenizer or the encoder, null for no bound. Its shard may take
    as much at first; one that takes longer is done again in pieces.

    `max_drift` ends an incremental run before it is published where what it scored is further than that from what was
    scored before (see `observe/drift.py`).
    """

    max_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    empty: Literal["error", "score"] = "error"
    timeout: Annotated[float, Field(gt=0)] | None = 600.0
    max_drift: Annotated[float, Field(ge=0)] | None = None


class ReportSection(Section):
    """For the run's report: the price an hour of all machines together."""

    price_per_hour: Annotated[float, Field(ge=0)] | None = None
    currency: Annotated[str, Field(max_length=8)] = "USD"


class LineageSection(Section):
    """OpenLineage events: to the `url` of a catalogue, or appended to a `file`, a line each; with neither, to where the
    client's own variables and file say. A key is that of the variable OPENLINEAGE_API_KEY.
    """

    url: str | None = None
    file: str | None = None
    namespace: str = "xlmr-ray"

    @model_validator(mode="after")
    def one_place(self) -> Self:
        if self.url is not None and self.file is not None:
            raise ValueError("lineage: has a url and a file; give one of them")
        return self


class Job(Section):
    """`adapters`: LoRA adapters of the model, by name the folder of each, which tasks name; all on the model's one
    encoder, or with `merge` each in separate weights.

    `incremental`: score only the inputs that the published table of the same job has not, and add them to it. It
    stands beside the sections because it says what a launch does, not how something is read. `reuse`: rows of a
    replaced input whose texts are the same take their results from it.
    """

    name: str = "job"
    model: str = "embedded:mini"
    adapters: Annotated[dict[str, str], Field(default_factory=dict)]
    merge: bool = False
    input: InputSection
    tasks: Annotated[
        list[Annotated[TaskSection, BeforeValidator(named_task)]], Field(min_length=1), BeforeValidator(listed)
    ]
    output: OutputSection
    engine: EngineSection = EngineSection()
    cluster: ClusterSection = ClusterSection()
    errors: ErrorsSection = ErrorsSection()
    report: ReportSection = ReportSection()
    lineage: LineageSection | None = None
    incremental: bool = False
    reuse: bool = False

    @model_validator(mode="after")
    def reuse_is_of_a_table(self) -> Self:
        if self.reuse and not self.incremental:
            raise ValueError("reuse: takes results from the table before, which only incremental: true adds to")
        return self

    @model_validator(mode="after")
    def names_differ(self) -> Self:
        names = [task.name or task.task for task in self.tasks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tasks: two are named {name!r}; give them different names")
        return self

    @model_validator(mode="after")
    def adapters_are_used(self) -> Self:
        asked = {task.adapter for task in self.tasks if task.adapter is not None}
        for name in sorted(asked - self.adapters.keys()):
            there = ", ".join(self.adapters) or "none"
            raise ValueError(f"tasks: no adapter {name!r}; under adapters there is: {there}")
        for name in self.adapters:
            if name not in asked:
                raise ValueError(f"adapters: no task names {name!r}; a task says it with `adapter: {name}`")
        return self

    def checkpoint(self, task: TaskSection) -> str:
        """The checkpoint of a task, as `resolve` takes it."""
        model = task.model or self.model
        if task.adapter is None:
            return model
        return f"{model}[{'merged' if self.merge else 'adapter'}={self.adapters[task.adapter]}]"


# The output of a job that is only measured.
NOWHERE = "not-written"


def job_of_call(
    job: str,
    *,
    input: Sequence[str] | None = None,
    output: str | None = None,
    model: str | None = None,
    limit: int | None = None,
    settings: Sequence[str] | None = None,
    writes: bool = True,
) -> Job:
    """The job of a command line: `job` is a job file, or a task's name for a job of that task; the others are put over
    it, `settings` last. A job that `writes` needs an output. Raises UserError for what does not fit.
    """
    content: dict[str, Any]
    if job in TASKS:
        content = {"name": job, "tasks": [{"task": job}]}
    elif Path(job).exists() or job.endswith((".yaml", ".yml")):
        content = read_job(Path(job))
    else:
        raise UserError(f"{job}: neither a job file nor a task; the tasks are: {', '.join(TASKS)}")
    given = (("input", "path", input), ("output", "path", output), ("input", "limit", limit))
    for name, key, value in given:
        if value:
            section = content.get(name)
            content = {**content, name: {**(section if isinstance(section, dict) else {}), key: value}}
    if model:
        content = {**content, "model": model}
    content = with_settings(content, settings, "--set")
    if not writes:
        content.setdefault("output", {"path": NOWHERE})
    for name in ("input", "output"):
        if name not in content:
            raise UserError(f"{job}: nothing says the {name}; give --{name}")
    return check_job(content, job)


def read_job(path: Path) -> dict[str, Any]:
    """The content of a job file, not yet checked. Raises UserError where it is no YAML mapping."""
    return read_yaml(path, "input, tasks and output")


def with_settings(content: dict[str, Any], settings: Sequence[str] | None, option: str) -> dict[str, Any]:
    """The content with each `key=value` put in that an option of the command line was given."""
    for setting in settings or ():
        content = with_setting(content, setting, option)
    return content


def with_setting(content: dict[str, Any], setting: str, option: str = "--set") -> dict[str, Any]:
    """The content with one `key=value` of the command line put in; keys are dotted (`engine.dtype=float32`,
    `tasks.0.top_k=3`).

    Raises UserError for a setting of another form, or a path through something that holds no keys.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"{option} {setting}: want key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    changed: dict[str, Any] = _with_value(content, key.split("."), value, f"{option} {setting}")
    return changed


def _with_value(at: Any, path: list[str], value: Any, setting: str) -> Any:
    first, *rest = path
    if isinstance(at, list) and first.isdigit() and int(first) < len(at):
        new = list(at)
        new[int(first)] = _with_value(at[int(first)], rest, value, setting) if rest else value
        return new
    if isinstance(at, dict):
        return {**at, first: _with_value(at.get(first) or {}, rest, value, setting) if rest else value}
    raise UserError(f"{setting}: there is nothing at {first!r} to set")


def check_job(content: dict[str, Any], where: str) -> Job:
    """The job. Raises UserError, one line, that names the key and, for an unknown one, the nearest that there is."""
    return checked(Job, content, where)
