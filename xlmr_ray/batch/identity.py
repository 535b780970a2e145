"""What decides the answers of a run: the job, its checkpoints and its inputs. A run is named after a hash of it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlmr_ray.batch.cluster import gpus_dtype, on_gpu
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.job import EngineSection, Job
from xlmr_ray.batch.ledger.json_by_line import canonical
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import TaskRecipe
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import HEADS, encoder_folder
from xlmr_ray.tasks.registry import canonical_task
from xlmr_ray.tasks.task import Task, option_fields

# Raised by one whenever this package gives other answers to the same input.
ANSWERS = 1


def run_id(identity: Mapping[str, object]) -> str:
    """The run's name: 16 hex digits that change with anything in `identity`, which holds what decides the answers."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:16]


def identity(job: Job, recipes: Sequence[TaskRecipe], columns: Columns, inputs: Sequence[InputFile]) -> dict[str, Any]:
    """What decides the run: the job's own identity, and the inputs, whose list the plan holds."""
    total = hashlib.sha256()
    for one in inputs:
        total.update(canonical(one.line()) + b"\n")
    return {**job_identity(job, recipes, columns), "inputs": total.hexdigest()}


def job_identity(job: Job, recipes: Sequence[TaskRecipe], columns: Columns) -> dict[str, Any]:
    """What decides the answer to a row, and nothing else.

    Not the cluster, the token budget, the size of a shard, the job's name or the kind of processor: these move an
    answer by rounding at most. An option counts by its value, whether the job file says it or the task's default does.
    """
    tasks = [
        {
            "task": canonical_task(recipe.task),
            "prefix": recipe.prefix,
            "options": options_of(bound_task(recipe)),
            "weights": recipe.weights,
            "tokenizer": recipe.tokenizer,
            "settings": settings_digest(resolve(recipe.model)),
        }
        for recipe in recipes
    ]
    options = {name: reader.model_dump(exclude_defaults=True) for name, reader in job.input.readers.items()}
    formats = {name: given for name, given in options.items() if given}
    return {
        "answers": ANSWERS,
        "columns": columns.identity(),
        "tasks": tasks,
        "precision": run_dtype(job.engine),
        "attn_implementation": job.engine.attn_implementation,
        "quantization": job.engine.quantization,
        # Runs from before there were these keep their names.
        **({"compile": True} if job.engine.compile else {}),
        **({"limit": job.input.limit} if job.input.limit else {}),
        "empty": job.errors.empty,
        "max_row_bytes": job.input.max_row_bytes,
        **({"formats": formats} if formats else {}),
    }


def options_of(task: Task) -> dict[str, Any]:
    """The task's options by name, defaults filled in. One that was `added` to a task later counts where it is set: runs
    from before there was such a thing keep their names.
    """
    values = {one.name: (getattr(task, one.name), one) for one in option_fields(task)}
    return {
        name: value for name, (value, one) in values.items() if not one.metadata.get("added") or value != one.default
    }


def run_dtype(engine: EngineSection) -> str:
    """The dtype that the run's engines compute in. It is chosen once, from what is there now, for all actors:
    a machine that joins later must not choose otherwise.
    """
    if engine.dtype != "auto":
        return engine.dtype
    return gpus_dtype() if on_gpu(engine.device) else "float32"


def settings_digest(folder: Path) -> str:
    """Of a checkpoint's small JSON files: labels, pooling, prompts, lengths; a head's encoder's, too.

    Without what has digests elsewhere, tokens and weights, and without the heads that lie beside an encoder.
    """
    total = hashlib.sha256()
    for own in (folder, encoder_folder(folder)):
        for path in sorted(own.rglob("*.json")) if own else ():
            parts = path.relative_to(own or folder).parts
            if parts[0] != HEADS and not any(part.startswith(".") for part in parts) and not known_otherwise(parts[-1]):
                total.update(f"{'/'.join(parts)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def known_otherwise(name: str) -> bool:
    return name == "tokenizer.json" or name.endswith((".safetensors.index.json", ".bin.index.json"))
