"""The checkpoints of a run on this machine: fetched, and checked to be the run's."""

from collections.abc import Callable

from xlmr_ray.batch.stages.recipe import TaskRecipe
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.errors import JobFailed
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tasks.task import Task


def bound_task(recipe: TaskRecipe) -> Task:
    """The task, its checkpoint fetched to this machine where it is not there yet."""
    return bind_task(recipe.task, resolve(recipe.model), recipe.options)


def tried(load: Callable[[], None]) -> Exception | None:
    """What went wrong in loading. It is raised on the first shard: what a constructor raises, Ray wraps beyond
    reading.
    """
    try:
        load()
    except Exception as error:
        return error
    return None


def check_same(model: str, part: str, got: str, wanted: str) -> None:
    """Raises JobFailed where this machine's checkpoint is not the run's."""
    if got != wanted:
        raise JobFailed(
            f"{model}: the {part} on this machine are others ({got[:12]}) than the run's ({wanted[:12]}): "
            "put the same checkpoint on all machines"
        )
