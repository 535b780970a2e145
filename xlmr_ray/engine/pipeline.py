"""`pipeline(task, model=…)`: a task in Python, with the same steps as a batch job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.engine import Engine
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import documents, targets_of
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tasks.task import Task
from xlmr_ray.tokenizer import XLMRobertaTokenizer

Text = str | dict[str, str]


class Pipeline:
    """Texts in, the task's answers out. A text that has no answer raises UserError with its place and why."""

    def __init__(self, task: Task, engine: Engine, tokenizer: XLMRobertaTokenizer) -> None:
        self.task, self.engine, self.tokenizer = task, engine, tokenizer

    def __call__(self, inputs: Text | Sequence[Text]) -> list[Any]:
        """One text or several; a pair is `{"text": …, "text_pair": …}`. One answer each, in their order."""
        return self.task.answers(self.table(inputs))

    def table(self, inputs: Text | Sequence[Text]) -> pa.Table:
        """The answers as the output table of a batch job has them."""
        encoded = self.task.prepare(columns(inputs, self.task.roles), self.tokenizer)
        results = self.engine.run(encoded["input_ids"], targets_of(encoded))
        for sequence, (code, message) in sorted(results.failed.items()):
            raise UserError(f"text {documents(encoded)[sequence]}: {code}: {message}")
        return self.task.postprocess(results.raw[0], encoded)


def columns(inputs: Text | Sequence[Text], roles: Sequence[str]) -> pa.Table:
    """The texts as a table with a string column for each role. Raises UserError for a text of another form."""
    texts = [inputs] if isinstance(inputs, str | dict) else list(inputs)
    values: dict[str, list[str]] = {role: [] for role in roles}
    for place, text in enumerate(texts):
        parts = {roles[0]: text} if isinstance(text, str) else text
        if (
            not isinstance(parts, dict)
            or set(parts) != set(roles)
            or not all(isinstance(p, str) for p in parts.values())
        ):
            wanted = "a string" if len(roles) == 1 else f"a mapping of {', '.join(roles)} to strings"
            raise UserError(f"text {place}: {wanted} is wanted, got {type(text).__name__}")
        for role in roles:
            values[role].append(parts[role])
    return pa.table({role: pa.array(column, pa.string()) for role, column in values.items()})


def pipeline(
    task: str,
    model: str | Path = "embedded:mini",
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attn_implementation: str = "auto",
    max_tokens: int | str = "auto",
    **options: Any,
) -> Pipeline:
    """A task on a checkpoint. `options` are the task's own, as in a job file; the others are those of `Engine.load`."""
    folder = resolve(model, revision=revision, local_files_only=local_files_only, cache_dir=cache_dir)
    bound = bind_task(task, folder, options)
    engine = Engine.load(
        folder, [bound], dtype=dtype, device=device, attn_implementation=attn_implementation, max_tokens=max_tokens
    )
    return Pipeline(bound, engine, XLMRobertaTokenizer.from_pretrained(folder))
