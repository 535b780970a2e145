"""The tasks by name."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.task import Task, TaskClass
from xlmr_ray.tasks.text_classification import TextClassification

TASKS: dict[str, TaskClass] = {
    "embedding": Embedding,
    "text-classification": TextClassification,
}


def task_class(name: str) -> TaskClass:
    """The class of a task. Raises UserError that names the nearest one."""
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise UserError(
            f"no task {name!r}" + (f", did you mean {near[0]!r}?" if near else "") + f"; there are: {', '.join(TASKS)}"
        )
    return TASKS[name]


def bind_task(name: str, folder: Path, options: Mapping[str, Any]) -> Task:
    """The task for the checkpoint in a folder."""
    return task_class(name).bind(folder, XLMRobertaConfig.from_dict(read_config(folder)), options)
