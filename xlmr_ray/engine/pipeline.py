"""`pipeline(task, model=…)`: a task in Python, with the same steps as a batch job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.fork import compute_after_fork
from xlmr_ray.engine.pipeline_arguments import is_stream, placed, streamed, task_options
from xlmr_ray.engine.runners import Runner, TaskSource, load_runners, runner_of
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import UserError
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.tasks.registry import canonical_task, task_class
from xlmr_ray.tasks.rerank import rerank
from xlmr_ray.tasks.task import Task, option_fields
from xlmr_ray.tokenizer.files import tokenizer_folder
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.tokenizer.vocabulary import PreTokenizer

Text = str | Mapping[str, Any]


class Pipeline:
    """Texts in, the task's answers out. A text that has no answer raises UserError with its index and why."""

    def __init__(
        self,
        name: str,
        folder: Path,
        config: XLMRobertaConfig,
        options: Mapping[str, Any],
        task: Task,
        engine: Runner,
        tokenizer: XLMRobertaTokenizer,
        index: int = 0,
    ) -> None:
        self.name, self.folder, self.config, self.options = name, folder, config, options
        self.task, self.engine, self.tokenizer, self.index = task, engine, tokenizer, index
        self.adapters: dict[str, Pipeline] = {}
        self.known = {one.name for one in option_fields(task)}

    def __call__(self, inputs: Text | Sequence[Text] | None = None, *values: Any, **more: Any) -> Any:
        """The answer to one text, or a list of answers to several, in their order; to a generator's or a data set's,
        answers that are computed as they are asked for.

        A text is a string, or a mapping of the task's roles to strings (`{"question": …, "context": …}`), which may
        also be given by keyword, each a string or a list. Other keywords are options of the task, for this call.
        Of several adapters, `adapter=` names the one that computes. A task may take one option by position (zero-shot
        classification its `candidate_labels`, as in transformers); and reranking takes `{"query": …, "documents":
        [...]}`, with what else `rerank` of `tasks/rerank.py` has.
        """
        if self.adapters:
            return self.of_adapter(more.pop("adapter", None))(inputs, *values, **more)
        if (name := self.task.positional_option) is not None and len(values) == 1:
            more = {name: values[0], **more}
        elif values:
            raise UserError(f"{self.name}: got {1 + len(values)} arguments, expected one; give options by keyword")
        if self.name == "rerank" and isinstance(inputs, Mapping) and "query" in inputs:
            return rerank(self, **inputs, **more)
        more = task_options(more, self.known)
        if is_stream(inputs):
            return streamed(inputs, lambda some: self.answered(some, more))
        if more.pop("is_split_into_words", False):
            inputs = joined_words(inputs, more.pop("delimiter", None))
        texts, single, options = self.taken(inputs, more)
        answers = self.answered(texts, options)
        if self.task.always_lists:
            # As in transformers, which tells by how `top_k` is asked for.
            wrapped = isinstance(inputs, str) and "top_k" not in more
            return answers[0] if single and not wrapped else answers
        single = single or (len(texts) == 1 and self.task.unwraps_lists_of_one)
        return answers[0] if single else answers

    def of_adapter(self, name: str | None) -> Pipeline:
        """The pipeline of an adapter. Raises UserError for a name that there is not."""
        if name is None and len(self.adapters) == 1:
            return next(iter(self.adapters.values()))
        if name not in self.adapters:
            raise UserError(f"{self.name}: adapter={name!r}: name one of {', '.join(self.adapters)}")
        return self.adapters[name]

    def answered(self, texts: Sequence[Text], options: Mapping[str, Any]) -> list[Any]:
        """An answer a text, in the form of the task's."""
        task = self.bound(options)
        given = columns(texts, task.roles)
        answers = list(task.answers(self.scored(task, given), given))
        if task.always_lists and "top_k" in {**self.options, **options}:
            return [answer if isinstance(answer, list) else [answer] for answer in answers]
        return answers

    def table(self, inputs: Text | Sequence[Text], **options: Any) -> pa.Table:
        """The answers as the output table of a batch job has them."""
        if self.adapters:
            return self.of_adapter(options.pop("adapter", None)).table(inputs, **options)
        task = self.bound(options)
        texts = [inputs] if isinstance(inputs, str | Mapping) else list(inputs)
        return self.scored(task, columns(texts, task.roles))

    def scored(self, task: Task, given: pa.Table) -> pa.Table:
        """The output table of the task for columns of texts."""
        encoded = task.prepare(given, self.tokenizer)
        if task is not self.engine.tasks[self.index]:
            tasks: list[Task] = list(self.engine.tasks)
            tasks[self.index] = task
            self.engine.set_tasks(tasks)
        output = self.engine.output(self.index, encoded)
        for document, (code, message) in sorted(output.failed.items()):
            raise UserError(f"text {document}: {code}: {message}")
        return output.table

    def bound(self, options: Mapping[str, Any]) -> Task:
        """The task with options of a call over its own."""
        if not options:
            return self.task
        task = task_class(self.name).bind(self.folder, self.config, {**self.options, **options})
        task.read_with(self.tokenizer)
        return task

    def taken(
        self, inputs: Text | Sequence[Text] | None, more: Mapping[str, Any]
    ) -> tuple[list[Text], bool, dict[str, Any]]:
        """The texts, whether it is one and no list, and the options among the keywords."""
        roles = self.task.roles
        given = {role: more[role] for role in roles if role in more}
        options = {key: value for key, value in more.items() if key not in given}
        if given:
            if inputs is not None:
                raise UserError(f"{self.name}: texts come once, or by the keywords {', '.join(roles)}, not both ways")
            single = all(isinstance(value, str) for value in given.values())
            count = max((len(value) for value in given.values() if not isinstance(value, str)), default=1)
            spread = {role: [value] * count if isinstance(value, str) else value for role, value in given.items()}
            try:
                rows = zip(*spread.values(), strict=True)
                return [dict(zip(spread, row, strict=True)) for row in rows], single, options
            except ValueError:
                raise UserError(f"{self.name}: expected lists of equal length for {', '.join(given)}") from None
        if inputs is None:
            raise UserError(f"{self.name}: no text is given")
        single = isinstance(inputs, str | Mapping)
        texts: list[Text] = [inputs] if isinstance(inputs, str | Mapping) else list(inputs)
        # A batch job knows its columns beforehand; here they are known by what comes in, as in transformers.
        for role, option in self.task.optional_roles.items():
            if any(isinstance(text, Mapping) and role in text for text in texts):
                options.setdefault(option, True)
        return texts, single, options


def columns(texts: Sequence[Text], roles: Sequence[str]) -> pa.Table:
    """The texts as a table with a string column for each role; a list (`choices`, `spans`) is carried as JSON.

    Raises UserError for a text of another form.
    """
    values: dict[str, list[str]] = {role: [] for role in roles}
    for index, text in enumerate(texts):
        parts = {roles[0]: text} if isinstance(text, str) else text
        if not isinstance(parts, Mapping) or set(parts) != set(roles) or not all(map(is_text_input, parts.values())):
            expected = "a string" if len(roles) == 1 else f"a mapping of {', '.join(roles)} to strings"
            got = f"a mapping of {', '.join(map(str, text))}" if isinstance(text, Mapping) else type(text).__name__
            raise UserError(f"text {index}: expected {expected}, got {got}")
        for role in roles:
            part = parts[role]
            values[role].append(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
    return pa.table({role: pa.array(column, pa.string()) for role, column in values.items()})


def joined_words(inputs: Any, delimiter: str | None) -> list[str]:
    """A text of each list of words, in a list though it be one. Raises UserError."""
    if delimiter not in (None, " "):
        raise UserError(f"pipeline: delimiter={delimiter!r} is not supported: words are parted by a space")
    if not isinstance(inputs, list | tuple) or not inputs:
        raise UserError("pipeline: is_split_into_words: expected a list of words, or a list of such lists")
    return [" ".join(words) for words in ([inputs] if isinstance(inputs[0], str) else inputs)]


def is_text_input(value: object) -> bool:
    lists = isinstance(value, list | tuple) and all(isinstance(one, str | list | tuple) for one in value)
    return isinstance(value, str) or lists


def device_setting(device: int | str | torch.device | None) -> str:
    """As `EngineSettings` has it: transformers' numbers are GPUs, -1 the CPU, None the best there is."""
    if isinstance(device, int):
        return "cpu" if device < 0 else f"cuda:{device}"
    return "auto" if device is None else str(device)


def pipeline(
    task: str,
    model: str | Path | Pretrained = "embedded:mini",
    *,
    tokenizer: str | Path | XLMRobertaTokenizer | None = None,
    pre_tokenizer: PreTokenizer | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype = "auto",
    device: int | str | torch.device | None = "auto",
    attn_implementation: str = "auto",
    max_tokens: int | str = "auto",
    quantization: str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    **options: Any,
) -> Pipeline:
    """A task on a checkpoint, or on a model in memory, which then needs a `tokenizer`, too. `adapters` are folders of
    peft's with LoRA adapters of the checkpoint, by name; a call says which (`adapter=`), and all share the checkpoint's
    weights. `options` are the task's
    own, as in a job file, or transformers' arguments (MAKING of `engine/pipeline_arguments.py`); `pre_tokenizer` is
    that of `XLMRobertaTokenizer.from_pretrained`, which makes the tokenizer unless one is given; the others are those
    of `EngineSettings`.
    """
    compute_after_fork()
    name = canonical_task(task)
    named = {"dtype": dtype, "device": device}
    options = {**{key: value for key, value in named.items() if value not in ("auto", None)}, **options}
    found = placed(options)
    attn_implementation = found.get("attn_implementation", attn_implementation)
    where: dict[str, Any] = {
        "revision": revision,
        "local_files_only": local_files_only,
        "cache_dir": cache_dir,
        "token": token,
    }
    where |= {key: found[key] for key in where if key in found}
    options = task_options(options, {one.name for one in option_fields(task_class(name))})
    if isinstance(model, Pretrained):
        if tokenizer is None:
            raise UserError(f"pipeline({task!r}): a model in memory needs a tokenizer=, too")
        folder = model.load_report.folder if model.load_report else Path("no folder")
        for argument, given in (("adapters", adapters), ("quantization", quantization)):
            if given:
                raise UserError(f"pipeline({task!r}): {argument}= goes with a checkpoint, not with a model in memory")
        folders = [folder]
    else:
        names = [f"{model}[adapter={adapter}]" for adapter in adapters.values()] if adapters else [model]
        folders = [resolve(one, **where) for one in names]
        folder = folders[0]
    if isinstance(tokenizer, XLMRobertaTokenizer):
        if pre_tokenizer is not None:
            raise UserError(
                f"pipeline({task!r}): a tokenizer in memory has its pre_tokenizer; give it to from_pretrained"
            )
        tokenizers = [tokenizer] * len(folders)
    else:
        sources = [tokenizer_folder(one) if tokenizer is None else tokenizer for one in folders]
        known = {
            one: XLMRobertaTokenizer.from_pretrained(one, pre_tokenizer=pre_tokenizer) for one in dict.fromkeys(sources)
        }
        tokenizers = [known[one] for one in sources]
    configs = [
        model.config if isinstance(model, Pretrained) else XLMRobertaConfig.from_dict(read_config(one))
        for one in folders
    ]
    tasks = [task_class(name).bind(one, config, options) for one, config in zip(folders, configs, strict=True)]
    for one, own in zip(tasks, tokenizers, strict=True):
        one.read_with(own)
    if isinstance(model, Pretrained):
        engine = runner_of(model, tasks[0], tokenizers[0], max_tokens=max_tokens)
    else:
        how = EngineSettings(
            dtype=str(found.get("dtype", "auto")).removeprefix("torch."),
            device=device_setting(found.get("device", "auto")),
            attn_implementation=attn_implementation,
            max_tokens=max_tokens,
            quantization=quantization,
        )
        bound = zip(tasks, folders, tokenizers, strict=True)
        engine = load_runners([TaskSource(one, place, name, own) for one, place, own in bound], how)[0].runner
    each = [
        Pipeline(name, place, config, options, one, engine, own, index)
        for index, (place, config, one, own) in enumerate(zip(folders, configs, tasks, tokenizers, strict=True))
    ]
    if not adapters:
        return each[0]
    front = Pipeline(name, folders[0], configs[0], options, tasks[0], engine, tokenizers[0])
    front.adapters = dict(zip(adapters, each, strict=True))
    return front
