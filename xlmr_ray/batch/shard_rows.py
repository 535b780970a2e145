"""How large a shard is where the job does not say: enough to share the work, few enough for who keeps the books.

Bytes decide, those of the text; rows are a bound. An encoder's share of the work is in several shards, fewer where they
are small, and none takes longer than about a minute, as far as that does not make more than some thousands for a
machine.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence

from xlmr_ray.batch.cluster import on_gpu, remote, resources
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.planning import SHARD_BYTES
from xlmr_ray.batch.input.readers.raw import BadFile, Source
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.job import EncoderRange, Job
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import TaskRecipe
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder, read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.operations import matmul_operations
from xlmr_ray.tasks.task import EncoderTask

SHARD_ROWS = 8192
FEWEST_ROWS = 16
# The model's results for a shard in memory, where they are vectors of tokens; the writer and Ray hold them, too.
# On a CPU there is an encoder a core, and the memory is for all of them.
RESULT_BYTES, RESULT_BYTES_CPU = 1 << 30, 64 << 20
# What of a shard's results an encoder's process holds at once: the model's, the output's rows, their block (3.3 seen).
COPIES = 4
EACH = 16  # shards that an encoder has, where they are not small, so that none waits long for the last
MOST = 4096  # shards that a machine has at most
MINUTE = 60.0
# Operations a second, on the safe side, of a core and of a GPU; and a token's bytes.
CPU_SPEED, GPU_SPEED = 5e10, 1e14
TOKEN_BYTES = 4
FEWEST_BYTES_CPU, FEWEST_BYTES_GPU = 16 << 10, 1 << 20  # a shard has a price, too, and a GPU wants large batches
# That price is about a tenth of a second on two cores, and most of it Ray's: 263 pages for e5-small took 5 % longer in
# 33 shards than in 17. So before an encoder has more than this many, they are to have twice the fewest bytes.
FEW = 8
SAMPLE = 4  # files of a format that are looked into


def shard_rows(job: Job, recipes: Sequence[TaskRecipe]) -> int:
    """As asked, or the most by what a row's results take in memory, and by how many rows there are in a limited job."""
    if job.cluster.shard_rows != "auto":
        return job.cluster.shard_rows
    room = RESULT_BYTES if on_gpu(job.engine.device) else RESULT_BYTES_CPU
    most = max(1, min(SHARD_ROWS, room // max(1, sum(map(result_bytes, recipes)))))
    if job.input.limit is not None:
        most = min(most, max(FEWEST_ROWS, -(-job.input.limit // (EACH * encoders_and_machines(job)[0]))))
    return most


def shard_bytes(job: Job, recipes: Sequence[TaskRecipe], columns: Columns, inputs: Sequence[InputFile]) -> int:
    """Of the content that is read, for a job that reads these inputs."""
    if job.cluster.shard_rows != "auto":
        return SHARD_BYTES
    encoders, machines = encoders_and_machines(job)
    content = content_bytes(inputs, columns, job.input.readers)
    share = content // encoders
    gpu = on_gpu(job.engine.device)
    speed, fewest = (GPU_SPEED, FEWEST_BYTES_GPU) if gpu else (CPU_SPEED, FEWEST_BYTES_CPU)
    size = min(max(share // EACH, min(share // FEW, 2 * fewest)), minute_bytes(recipes, speed))
    return min(max(size, content // (MOST * machines), fewest), SHARD_BYTES)


def encoders_and_machines(job: Job) -> tuple[int, int]:
    """How many encoders there will be, about, and machines."""
    there = resources()
    found = sum(there.gpus if on_gpu(job.engine.device) else there.cpus)
    asked = job.cluster.encoders
    if isinstance(asked, EncoderRange):  # as if all had come: shards are not cut anew when they do
        asked = asked.max if remote(job.cluster.address) else min(asked.max, max(asked.min, int(found)))
    return (max(1, int(found)) if asked == "auto" else asked), max(1, len(there.cpus))


def minute_bytes(recipes: Iterable[TaskRecipe], speed: float) -> int:
    """Of text, about, that encoders of so many operations a second take in a minute."""
    encoders = {(recipe.encoder, recipe.tokenizer): recipe for recipe in recipes}
    token = sum(matmul_operations(config_of(recipe)) for recipe in encoders.values())
    return int(MINUTE * speed / max(1.0, token) * TOKEN_BYTES)


def content_bytes(inputs: Sequence[InputFile], columns: Columns, readers: Mapping[str, Reader]) -> int:
    """Of all inputs, about: from the sizes of all, and a look into some."""
    total = 0.0
    for name in {one.format for one in inputs}:
        files = [one for one in inputs if one.format == name]
        taken = files[:: max(1, len(files) // SAMPLE)][:SAMPLE]
        sizes = found = 0
        for one in taken:
            with contextlib.suppress(BadFile, FileNotFoundError):  # planning tells of it
                found += readers[name].content_bytes(Source(one), columns)
                sizes += one.size
        total += sum(one.size for one in files) * (found / sizes if sizes else 1.0)
    return int(total)


def config_of(recipe: TaskRecipe) -> XLMRobertaConfig:
    return XLMRobertaConfig.from_dict(read_config(model_folder(resolve(recipe.model))))


def held_bytes(recipes: Sequence[TaskRecipe], rows: int) -> int:
    """Bytes of results that an encoder's process holds for a shard of so many rows, were all of its texts as long as
    the model takes.
    """
    return COPIES * rows * sum(map(result_bytes, recipes))


def result_bytes(recipe: TaskRecipe) -> int:
    """Bytes of the model's results for a text as long as the model takes; 0 where there is one result a sequence."""
    task = bound_task(recipe)
    if not isinstance(task, EncoderTask) or task.unit == "sequence":
        return 0
    return 4 * task.result_width * task.longest_sequence(config_of(recipe))
