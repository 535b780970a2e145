"""What computes tasks: encoded tables in, output tables and failures out. Tasks of one encoder share its passes."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine, EngineStats
from xlmr_ray.engine.generator import Generator
from xlmr_ray.engine.results import TaskOutput
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import UserError
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.tasks.task import EncoderTask, GenerationTask, Task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


class Runner(Protocol):
    """A model with its tasks on one device. Not thread-safe."""

    stats: EngineStats
    max_tokens: int

    @property
    def tasks(self) -> Sequence[Task]: ...

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """The same tasks with other options."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""

    @property
    def encoder_config(self) -> XLMRobertaConfig | None:
        """The encoder's, where a token goes through it once: then its operations follow from the tokens."""

    def outputs(self, encoded: Sequence[pa.Table]) -> list[TaskOutput]:
        """Each task's output for its encoded table."""

    def output(self, index: int, encoded: pa.Table) -> TaskOutput:
        """The output of the task at this index."""


@dataclass(frozen=True)
class TaskSource:
    """A task with the `folder` of its checkpoint. Encoder tasks of equal `shares` have the same encoder and tokenizer.
    `tokenizer`: where one is in memory already.
    """

    task: Task
    folder: Path
    shares: Hashable
    tokenizer: XLMRobertaTokenizer | None = None


@dataclass(frozen=True)
class Loaded:
    """A runner, and which of the sources its tasks are."""

    indices: tuple[int, ...]
    runner: Runner


def check_quantizable(name: str, task: Task, quantization: str | None) -> None:
    """Raises UserError for a task that is not computed on quantized weights."""
    if quantization is not None and not isinstance(task, EncoderTask):
        raise UserError(f"engine.quantization {quantization}: task {name} does not take it")


def load_runners(sources: Sequence[TaskSource], settings: EngineSettings) -> list[Loaded]:
    """The runners of some tasks. Raises UserError for what does not fit."""
    groups: dict[Hashable, list[int]] = {}
    for index, source in enumerate(sources):
        if isinstance(source.task, EncoderTask):
            groups.setdefault(source.shares, []).append(index)
    loaded = []
    for group in groups.values():
        tasks = [task for index in group if isinstance(task := sources[index].task, EncoderTask)]
        folders = [sources[index].folder for index in group]
        engine = Engine.load(folders[0], tasks, settings, head_folders=folders)
        loaded.append(Loaded(tuple(group), engine))
    for index, source in enumerate(sources):
        if isinstance(source.task, GenerationTask):
            generator = Generator.load(source.folder, source.task, settings, tokenizer=source.tokenizer)
            loaded.append(Loaded((index,), generator))
        elif not isinstance(source.task, EncoderTask):
            kind = type(source.task).__name__
            raise TypeError(f"nothing computes a {kind}: derive it from EncoderTask or GenerationTask")
    return loaded


def runner_of(
    model: Pretrained, task: Task, tokenizer: XLMRobertaTokenizer, *, max_tokens: int | str = "auto"
) -> Runner:
    """The runner of a task on a model in memory. Raises UserError where the model is not one for it."""
    if isinstance(task, EncoderTask):
        return Engine.of(model, [task], max_tokens=max_tokens)
    assert isinstance(task, GenerationTask)
    return Generator.of(model, task, tokenizer, max_tokens=max_tokens)
