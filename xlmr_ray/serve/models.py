"""The models of a service: checkpoints with their tasks, those that share an encoder on one engine."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.identity import encoder_identity
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.generator import Generator
from xlmr_ray.errors import UserError
from xlmr_ray.serve.queue.batcher import Batcher, BatchStats
from xlmr_ray.serve.queue.generation import Writer
from xlmr_ray.serve.settings import EngineSection, ModelSection, ServeSettings
from xlmr_ray.tasks.registry import canonical_task, task_class
from xlmr_ray.tasks.task import EncoderTask, Task
from xlmr_ray.tasks.text_generation import TextGeneration
from xlmr_ray.tokenizer.call.settings import Side
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

log = logging.getLogger(__name__)

Observe = Callable[[str, BatchStats], None]


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint that is served. `name` is what clients call it, `source` what the settings do; `tasks` are its own,
    by name; `max_length` the most tokens of a sequence; `digest` that of its weights; `dtype` what it computes in.
    """

    name: str
    source: str
    folder: Path
    config: XLMRobertaConfig
    tokenizer: XLMRobertaTokenizer
    tasks: tuple[str, ...]
    max_length: int
    digest: str
    dtype: str

    def tokenizer_cutting(self, side: str | None) -> XLMRobertaTokenizer:
        """One that cuts long texts at this side, `left` or `right`; the model's own for None."""
        return self.tokenizer if side in (None, self.tokenizer.truncation_side) else self._other_side

    @cached_property
    def _other_side(self) -> XLMRobertaTokenizer:
        other: Side = "right" if self.tokenizer.truncation_side == "left" else "left"
        return XLMRobertaTokenizer.from_pretrained(self.folder, truncation_side=other)


@dataclass(frozen=True, eq=False)
class Served:
    """A task of a model: its `options` where a request has none, `bound` with them, the queue of its engine, and the
    place of its head there.
    """

    task: str
    model: Model
    options: Mapping[str, Any]
    bound: Task
    lane: Batcher | Writer
    place: int = 0

    def with_options(self, options: Mapping[str, Any]) -> Task:
        """The task with a request's options over its own. Raises UserError for one that it does not have."""
        if not options:
            return self.bound
        return task_class(self.task).bind(self.model.folder, self.model.config, {**self.options, **options})


@dataclass(frozen=True, eq=False)
class Models:
    """All that is resident: by name, in the order of the settings, and each one's tasks."""

    models: Mapping[str, Model]
    served: tuple[Served, ...]
    lanes: tuple[Batcher | Writer, ...]

    def close(self) -> None:
        """Ends the threads once nothing waits any more; the weights go with the last request."""
        for lane in self.lanes:
            lane.door.close()


@dataclass(frozen=True)
class Wanted:
    """A task to be loaded."""

    model: str
    task: str
    folder: Path
    options: Mapping[str, Any]
    bound: Task


def load_models(settings: ServeSettings, observe: Observe) -> Models:
    """Fetches, checks and loads what the settings name. Raises UserError, one line, for what does not fit."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # requests are tokenized beside each other
    if settings.engine.threads != "auto":
        torch.set_num_threads(settings.engine.threads)
    folders: dict[str, Path] = {}
    configs: dict[str, XLMRobertaConfig] = {}
    tokenizers: dict[str, XLMRobertaTokenizer] = {}
    groups: dict[tuple[str, str], list[Wanted]] = {}
    causal: list[Wanted] = []
    for section in settings.models:
        name, folder = section.called, resolve(section.model)
        folders[name], tokenizers[name] = folder, XLMRobertaTokenizer.from_pretrained(folder)
        configs[name] = XLMRobertaConfig.from_dict(read_config(folder))
        for one in wanted_tasks(section, folder, configs[name]):
            if isinstance(one.bound, TextGeneration):
                if settings.engine.quantization is not None:
                    raise UserError(f"engine.quantization {settings.engine.quantization}: text-generation takes none")
                causal.append(one)
            else:
                groups.setdefault((encoder_identity(folder), tokenizers[name].fingerprint), []).append(one)
    engines = [(group, load_engine(settings.engine, group)) for group in groups.values()]
    generators = [(one, load_generator(settings.engine, one, tokenizers[one.model])) for one in causal]

    # Threads start when nothing can fail any more.
    placed: dict[tuple[str, str], tuple[Batcher | Writer, int]] = {}
    dtypes: dict[str, str] = {}
    for group, engine in engines:
        label = group[0].model
        batcher = Batcher(engine, label, partial(observe, label))
        for place, one in enumerate(group):
            placed[one.model, one.task] = batcher, place
            dtypes[one.model] = str(next(engine.model.parameters()).dtype).removeprefix("torch.")
    for one, generator in generators:
        placed[one.model, one.task] = Writer(generator, f"{one.model}/{one.task}"), 0
        dtypes[one.model] = str(generator.model.dtype).removeprefix("torch.")
    every = [one for group, _ in engines for one in group] + causal
    models = {
        section.called: Model(
            name=section.called,
            source=section.model,
            folder=folders[section.called],
            config=configs[section.called],
            tokenizer=tokenizers[section.called],
            tasks=tuple(one.task for one in every if one.model == section.called),
            max_length=min(configs[section.called].max_length, tokenizers[section.called].model_max_length),
            digest=weights_digest(folders[section.called]),
            dtype=dtypes[section.called],
        )
        for section in settings.models
    }
    order = list(models)
    served = [
        Served(one.task, models[one.model], one.options, one.bound, *placed[one.model, one.task])
        for one in sorted(every, key=lambda one: order.index(one.model))
    ]
    return Models(models, tuple(served), tuple({id(lane): lane for lane, _ in placed.values()}.values()))


def check_models(settings: ServeSettings) -> None:
    """Raises what `load_models` would for checkpoints, tasks and options, without loading weights."""
    for section in settings.models:
        folder = resolve(section.model)
        wanted_tasks(section, folder, XLMRobertaConfig.from_dict(read_config(folder)))


def wanted_tasks(section: ModelSection, folder: Path, config: XLMRobertaConfig) -> list[Wanted]:
    """The tasks of a model, bound to it. Raises UserError where a task is named twice or is none."""
    asked = [(canonical_task(one.task), one.options) for one in section.tasks]
    names = [task for task, _ in asked]
    if twice := next((task for task in names if names.count(task) > 1), None):
        raise UserError(f"model {section.called}: task {twice} is there twice; name the model twice for two of a task")
    for task in names:
        if not task_class(task).online:
            raise UserError(f"model {section.called}: task {task} has no route in the service; use a job or Python")
    out = []
    for task, options in asked or [(task, {}) for task in default_tasks(folder, config)]:
        bound = task_class(task).bind(folder, config, options)
        # As they were bound: a file that an option names is read once, and requests cannot get another's content.
        read = {name: getattr(bound, name) for name in options}
        out.append(Wanted(section.called, task, folder, read, bound))
    return out


def load_engine(section: EngineSection, group: Sequence[Wanted]) -> Engine:
    tasks = [task for one in group if isinstance(task := one.bound, EncoderTask)]
    return Engine.load(
        group[0].folder,
        tasks,
        head_folders=[one.folder for one in group],
        dtype=section.dtype,
        device=section.device,
        attn_implementation=section.attn_implementation,
        max_tokens=section.max_tokens,
        quantization=section.quantization,
        compile=section.compile,
    )


def load_generator(section: EngineSection, one: Wanted, tokenizer: XLMRobertaTokenizer) -> Generator:
    assert isinstance(one.bound, TextGeneration)
    return Generator.load(
        one.folder,
        one.bound,
        tokenizer=tokenizer,
        dtype=section.dtype,
        device=section.device,
        attn_implementation=section.attn_implementation,
    )


def default_tasks(folder: Path, config: XLMRobertaConfig) -> tuple[str, ...]:
    """What a checkpoint is for, by its architecture. Raises UserError where that does not tell."""
    if (folder / "modules.json").exists():
        return ("embedding", "sentence-similarity", "feature-extraction")
    kind = next(iter(config.architectures or []), "").removeprefix("XLMRoberta").removeprefix("Roberta")
    if kind == "ForSequenceClassification":
        if len(config.labels) == 1:
            return ("rerank",)
        nli = any(label.lower().startswith("entail") for label in config.labels)
        return ("zero-shot-classification", "text-classification") if nli else ("text-classification",)
    tasks = {
        "ForTokenClassification": ("token-classification",),
        "ForQuestionAnswering": ("question-answering",),
        "ForMultipleChoice": ("multiple-choice",),
        "ForMaskedLM": ("fill-mask",),
        "ForCausalLM": ("text-generation",),
        "Model": ("embedding", "sentence-similarity", "feature-extraction"),
    }.get(kind)
    if tasks is None:
        named = ", ".join(config.architectures or []) or "no architecture"
        raise UserError(f"{folder}: config.json names {named}, which does not tell a task; name one")
    return tasks
