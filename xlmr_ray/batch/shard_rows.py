"""How many rows a shard has where the job does not say."""

from collections.abc import Sequence

from xlmr_ray.batch.cluster import on_gpu
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.stages.checkpoints import bound
from xlmr_ray.batch.stages.recipe import TaskRecipe
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder, read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.task import EncoderTask

# Seconds of work each, so that a crash costs little and progress shows.
SHARD_ROWS_CPU = 16
SHARD_ROWS_GPU = 8192
# The model's results for a shard in memory, where they are vectors of tokens; the writer and Ray hold them, too.
RESULT_BYTES = 1 << 30
# What of a shard's results an encoder's process holds at once: the model's, the output's rows, their block (3.3 seen).
COPIES = 4


def shard_rows(job: Job, recipes: Sequence[TaskRecipe]) -> int:
    """As asked, or by what the encoders will be on and what a row's results take in memory."""
    if job.cluster.shard_rows != "auto":
        return job.cluster.shard_rows
    most = SHARD_ROWS_GPU if on_gpu(job.engine.device) else SHARD_ROWS_CPU
    return max(1, min(most, RESULT_BYTES // max(1, sum(map(result_bytes, recipes)))))


def held_bytes(recipes: Sequence[TaskRecipe], rows: int) -> int:
    """Bytes of results that an encoder's process holds for a shard of so many rows, were all of its texts as long as
    the model takes.
    """
    return COPIES * rows * sum(map(result_bytes, recipes))


def result_bytes(recipe: TaskRecipe) -> int:
    """Bytes of the model's results for a text as long as the model takes; 0 where there is one result a sequence."""
    task = bound(recipe)
    if not isinstance(task, EncoderTask) or task.unit == "sequence":
        return 0
    config = XLMRobertaConfig.from_dict(read_config(model_folder(resolve(recipe.model))))
    return 4 * task.result_width * task.longest_sequence(config)
