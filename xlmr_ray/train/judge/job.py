"""The job file of `xlmr-ray label`: which documents, who is asked what about them, where the labels go."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import carries_secret, clean_url
from xlmr_ray.validation import Count, Section, checked, listed, read_yaml

ROLES = ("text", "text_pair")
RESERVED = ("source", "row", "judge_truncated")
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


def variable(name: str) -> str:
    # The value is not shown: it may be the key itself.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError("judge.api_key_env: expected the name of an environment variable that holds the key")
    return name


def web(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UserError(f"judge.url: {clean_url(url)}: expected http://… or https://…")
    if carries_secret(url):
        raise UserError(f"judge.url: {clean_url(url)}: holds a password or a query; say api_key_env for the key")
    return url.rstrip("/").removesuffix("/chat/completions")


def as_names(value: Any) -> Any:
    """Whole numbers count as their names."""
    return [str(one) if isinstance(one, int) else one for one in value] if isinstance(value, list) else value


class DocumentsSection(Section):
    """`path`: a file, folder, glob, or a list of them, as in a job; or `published`: the output of a job, whose table
    is read. `text` and `text_pair` name columns, `keep` those that come along.
    """

    path: Annotated[list[str] | None, BeforeValidator(listed)] = None
    published: str | None = None
    format: str = "auto"
    text: str = "text"
    text_pair: str | None = None
    keep: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def one_of_both(self) -> Self:
        if (self.path is None) == (self.published is None):
            raise ValueError("input: expected either a path or published, the output of a job")
        for name in self.keep:
            if name in RESERVED:
                raise ValueError(f"input.keep: {name!r} is a name that the output uses itself; rename the column")
        return self

    @property
    def roles(self) -> dict[str, str]:
        """The text columns, by role."""
        return {"text": self.text} | ({"text_pair": self.text_pair} if self.text_pair is not None else {})


class SampleSection(Section):
    """So many `documents`, of each value of the `by` columns as many, as far as there are. `random`, or by a `column`
    of the input: `uncertain` takes those with the lowest number (default: score), `diverse` those whose vectors
    (default: embedding) lie far from each other.
    """

    documents: Count
    by: Annotated[list[str], BeforeValidator(listed)] = Field(default_factory=list)
    strategy: Literal["random", "uncertain", "diverse"] = "random"
    column: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def column_is_read(self) -> Self:
        if self.strategy == "random" and self.column is not None:
            raise ValueError("sample.column: is for strategy: uncertain or diverse, and the strategy is random")
        return self

    @property
    def ranked_by(self) -> str | None:
        """The column that the strategy reads."""
        return self.column or {"random": None, "uncertain": "score", "diverse": "embedding"}[self.strategy]


class PriceSection(Section):
    """Of a million tokens."""

    prompt: NotNegative
    completion: NotNegative


class JudgeSection(Section):
    """The `model` of a server at `url` that answers as OpenAI's chat completions do. `prompt` has `{text}` where the
    document goes (`{text_pair}`, `{labels}`); the answer must be one of the `labels`. Each document is asked about
    `repeat` times. A text is cut to `max_chars`. `options` go into the request as they are.

    At most `concurrency` requests are under way, each for at most `timeout` seconds; a server that is busy or down is
    asked again for `patience` seconds. `known` is a kept column with labels by people, to compare with.
    """

    url: Annotated[str, AfterValidator(web)]
    model: str
    prompt: str
    labels: Annotated[list[str], BeforeValidator(as_names), Field(min_length=2)]
    options: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0})
    api_key_env: Annotated[str, AfterValidator(variable)] | None = None
    repeat: Count = 1
    max_chars: Count | None = None
    concurrency: Count = 8
    timeout: Positive = 120.0
    patience: NotNegative = 600.0
    price: PriceSection | None = None
    known: str | None = None

    @model_validator(mode="after")
    def fits(self) -> Self:
        if "{text}" not in self.prompt:
            raise ValueError("judge.prompt: expected {text} in it, where the document goes")
        plain = [plainly(label) for label in self.labels]
        if len(set(plain)) < len(plain) or "" in plain:
            raise ValueError("judge.labels: two are the same, or one is nothing, but for case and quotes")
        for name in ("model", "messages", "stream", "n"):
            if name in self.options:
                raise ValueError(f"judge.options: {name} is set by the command itself")
        return self


class LabelsSection(Section):
    """A folder of this machine, and what the column with the labels is called there."""

    path: str
    label: str = "label"


class LabelJob(Section):
    name: str = "label"
    input: DocumentsSection
    sample: SampleSection
    judge: JudgeSection
    output: LabelsSection

    @model_validator(mode="after")
    def names_are_apart(self) -> Self:
        taken = (*RESERVED, *self.input.roles, *self.input.keep)
        if self.output.label in taken:
            raise ValueError(f"output.label: {self.output.label!r} is another column of the output; name another one")
        for name in (*self.sample.by, *([self.judge.known] if self.judge.known else [])):
            if name not in self.input.keep:
                raise ValueError(f"input.keep: expected {name!r} in it, which is read, too")
        if "{text_pair}" in self.judge.prompt and self.input.text_pair is None:
            raise ValueError("judge.prompt: has {text_pair}, and input.text_pair names no column")
        return self


def plainly(text: str) -> str:
    """A label or an answer as they are compared: without case, and without quotes and stops around it."""
    return text.strip().strip("\"'`*.").strip().casefold()


def read_label_job(path: Path) -> dict[str, Any]:
    """The content of a job file, not yet checked. Raises UserError where it is no YAML mapping."""
    return read_yaml(path, "input, sample, judge and output")


def check_label_job(content: Mapping[str, Any], where: str) -> LabelJob:
    """The job. Raises UserError, one line, that names the key and, for an unknown one, the nearest that there is."""
    return checked(LabelJob, content, where)
