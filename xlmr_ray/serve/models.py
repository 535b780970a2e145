"""The models of a service: checkpoints with their tasks, those that share an encoder on one engine."""

import json
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from xlmr_ray.checkpoint.adapter import brings_head
from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.identity import encoder_identity
from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.generator import Generator
from xlmr_ray.engine.result_cache import ResultCache
from xlmr_ray.engine.runners import Runner, TaskSource, check_quantizable, load_runners
from xlmr_ray.engine.unloaded import check_weights
from xlmr_ray.errors import UserError
from xlmr_ray.serve.queue.base import RequestQueue
from xlmr_ray.serve.queue.batcher import Batcher, BatchStats
from xlmr_ray.serve.queue.generation import GenerationQueue
from xlmr_ray.serve.settings import ModelSection, ServeSettings
from xlmr_ray.tasks.registry import canonical_task, default_tasks, task_class
from xlmr_ray.tasks.task import Task
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
    def sentence(self) -> SentenceConfig | None:
        """What the folder says in sentence-transformers' files, where it has them."""
        return read_sentence_config(self.folder)

    @cached_property
    def _other_side(self) -> XLMRobertaTokenizer:
        other: XLMRobertaTokenizer = pickle.loads(pickle.dumps(self.tokenizer))
        other.truncation_side = "right" if self.tokenizer.truncation_side == "left" else "left"
        return other


@dataclass(frozen=True, eq=False)
class Served:
    """A task of a model: its `options` where a request has none, `bound` with them, the queue of its engine, and the
    index of its head there.
    """

    task: str
    model: Model
    options: Mapping[str, Any]
    bound: Task
    queue: RequestQueue
    index: int = 0

    def with_options(self, options: Mapping[str, Any]) -> Task:
        """The task with a request's options over its own. Raises UserError for one that it does not have."""
        if not options:
            return self.bound
        return task_class(self.task).bind(self.model.folder, self.model.config, {**self.options, **options})

    def known_as(self, options: Mapping[str, Any]) -> bytes:
        """What stands for all but the tokens that decides the results of a request with these options, in a cache that
        is thrown away with the models: which of them, with which weights, which task, and the options.
        """
        name = [self.model.name, self.model.digest, self.task, options]
        return blake2b(json.dumps(name, sort_keys=True).encode(), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Models:
    """All that is resident: by name, in the order of the settings, each one's tasks, and the results that are kept."""

    models: Mapping[str, Model]
    served: tuple[Served, ...]
    queues: tuple[RequestQueue, ...]
    cache: ResultCache[Any] | None = None

    def called(self, name: str) -> Model | None:
        """The model of this name, or whose checkpoint the settings call so, with or without its revision."""
        if name in self.models:
            return self.models[name]
        for model in self.models.values():
            if name in (model.source, model.source.partition("@")[0]):
                return model
        return None

    def close(self) -> None:
        """Ends the threads once nothing waits any more; the weights go with the last request."""
        for queue in self.queues:
            queue.door.close()


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
    every: list[Wanted] = []
    for section in model_sections(settings):
        name, folder = section.called, resolve(section.model)
        folders[name] = folder
        tokenizers[name] = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=settings.engine.pre_tokenizer)
        configs[name] = XLMRobertaConfig.from_dict(read_config(folder))
        every += wanted_tasks(section, folder, configs[name])
    for one in every:
        check_quantizable(one.task, one.bound, settings.engine.quantization)
        one.bound.read_with(tokenizers[one.model])
    sources = [
        TaskSource(
            task=one.bound,
            folder=one.folder,
            shares=(encoder_identity(one.folder), tokenizers[one.model].fingerprint),
            tokenizer=tokenizers[one.model],
        )
        for one in every
    ]
    loaded = load_runners(sources, settings.engine.settings)
    cache: ResultCache[Any] | None = None
    if settings.engine.cache_bytes:
        cache = ResultCache(settings.engine.cache_bytes)

    # Threads start when nothing can fail any more.
    queues: dict[int, tuple[RequestQueue, int]] = {}
    dtypes: dict[str, str] = {}
    for group in loaded:
        queue = queue_of(group.runner, every[group.indices[0]], observe, cache)
        for index, source in enumerate(group.indices):
            queues[source] = queue, index
            dtypes[every[source].model] = str(group.runner.dtype).removeprefix("torch.")
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
        for section in model_sections(settings)
    }
    served = [
        Served(one.task, models[one.model], one.options, one.bound, *queues[index]) for index, one in enumerate(every)
    ]
    return Models(models, tuple(served), tuple({id(queue): queue for queue, _ in queues.values()}.values()), cache)


def check_models(settings: ServeSettings) -> None:
    """Raises what `load_models` would for checkpoints, tasks and options, without reading more of the weights than
    their shapes.
    """
    for section in model_sections(settings):
        folder = resolve(section.model)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=settings.engine.pre_tokenizer)
        for one in wanted_tasks(section, folder, XLMRobertaConfig.from_dict(read_config(folder))):
            one.bound.read_with(tokenizer)
            check_weights(one.bound, folder)


def model_sections(settings: ServeSettings) -> list[ModelSection]:
    """The models, each adapter one of them. Raises UserError for a folder that has no adapter."""
    out = []
    for base in settings.models:
        if not base.merge:
            out.append(base.model_copy(update={"adapters": {}}))
        for name, adapter in base.adapters.items():
            model = f"{base.model}[{'merged' if base.merge else 'adapter'}={adapter.model}]"
            tasks = adapter.tasks or (() if brings_head(Path(adapter.model).expanduser()) else base.tasks)
            out.append(base.model_copy(update={"model": model, "name": name, "tasks": tasks, "adapters": {}}))
    return out


def wanted_tasks(section: ModelSection, folder: Path, config: XLMRobertaConfig) -> list[Wanted]:
    """The tasks of a model, bound to it. Raises UserError where a task is named twice or is none."""
    asked = [(canonical_task(one.task), one.options) for one in section.tasks]
    names = [task for task, _ in asked]
    if twice := next((task for task in names if names.count(task) > 1), None):
        raise UserError(f"model {section.called}: task {twice} is there twice; name the model twice for two of a task")
    out = []
    for task, options in asked or [(task, {}) for task in default_tasks(folder, config)]:
        bound = task_class(task).bind(folder, config, options)
        # As they were bound: a file that an option names is read once, and requests cannot get another's content.
        read = {name: getattr(bound, name) for name in options}
        out.append(Wanted(section.called, task, folder, read, bound))
    return out


def queue_of(runner: Runner, first: Wanted, observe: Observe, cache: ResultCache[Any] | None) -> RequestQueue:
    """The queue of a runner, named after its first task's model."""
    if isinstance(runner, Engine):
        return Batcher(runner, first.model, partial(observe, first.model), cache)
    assert isinstance(runner, Generator)
    return GenerationQueue(runner, f"{first.model}/{first.task}", cache)
