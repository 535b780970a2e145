"""The plan of a run: which shards, and the name of the run, which is a hash of all that decides its answers."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlmr_ray.batch.columns import Columns
from xlmr_ray.batch.commit import Damaged, create_plan, lines_of, plan_key, run_id
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.recipe import TaskRecipe, shard_from_dict
from xlmr_ray.batch.shards import DeadLetter, Shard, plan_shards
from xlmr_ray.batch.source import Input
from xlmr_ray.batch.stages import bound
from xlmr_ray.batch.store import Store
from xlmr_ray.checkpoint.digest import encoder_identity, files_stamp, weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.text_generation import TextGeneration
from xlmr_ray.tokenizer import XLMRobertaTokenizer

# Raised by one whenever this package gives other answers to the same input.
ANSWERS = 1
# Begins the ids of shards that stand for a file that cannot be read at all: one error row, at row -1.
FILES = "files"


@dataclass(frozen=True)
class Dead:
    """A file that cannot be read, or the rest of one, as a shard of its own: what the plan knew of it, and why."""

    id: str
    input: Input
    code: str
    message: str


@dataclass(frozen=True)
class Plan:
    """`shards` still without those committed; `dead` are the files that cannot be read, a shard each."""

    run_id: str
    shards: tuple[Shard, ...]
    dead: tuple[Dead, ...]

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards) + len(self.dead)


def task_recipes(job: Job) -> tuple[TaskRecipe, ...]:
    """The job's tasks with their checkpoints found and hashed, and their options checked against them."""
    recipes = []
    for section in job.tasks:
        model = section.model or job.model
        options = section.options
        if job.engine.max_length != "auto":
            options.setdefault("max_length", job.engine.max_length)
        if job.input.text_pair is not None and section.task == "text-classification":
            options.setdefault("pairs", True)
        prefix = f"{section.name or section.task}_".replace("-", "_") if len(job.tasks) > 1 else ""
        folder = resolve(model)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
        recipe = TaskRecipe(
            task=section.task,
            prefix=prefix,
            model=model,
            weights=weights_digest(folder),
            encoder=encoder_identity(folder),
            stamp=files_stamp(folder),
            tokenizer=tokenizer.fingerprint,
            options=options,
        )
        task = bound(recipe)
        if job.engine.quantization is not None and isinstance(task, TextGeneration):
            raise UserError(f"engine.quantization {job.engine.quantization}: task {section.task} does not take it")
        # What does not fit the tokenizer is said now, and not by the first shard.
        task.prepare(pa.table({role: pa.array([], pa.string()) for role in task.roles}), tokenizer)
        recipes.append(recipe)
    return tuple(recipes)


def columns_of(job: Job, recipes: Sequence[TaskRecipe]) -> Columns:
    """The columns to read: those that the tasks need. Raises UserError where the job names none for a role."""
    roles = ("text", "text_pair", "question", "context", "choices")
    named: dict[str, str | None] = {role: getattr(job.input, role, None) for role in roles}
    text: dict[str, str] = {}
    for recipe in recipes:
        for role in bound(recipe).roles:
            column = named.get(role)
            if column is None:
                raise UserError(f"input.{role}: task {recipe.task} reads it; name its column")
            text[role] = column
    return Columns(text=text, id=job.input.id, keep=tuple(job.input.keep))


def identity(job: Job, recipes: Sequence[TaskRecipe], columns: Columns, inputs: Sequence[Input]) -> dict[str, Any]:
    """What decides the run: the job's own identity, and the inputs."""
    return {**job_identity(job, recipes, columns), "inputs": [asdict(one) for one in inputs]}


def job_identity(job: Job, recipes: Sequence[TaskRecipe], columns: Columns) -> dict[str, Any]:
    """What decides the answer to a row, and nothing else: not the cluster, the token budget or the size of a shard."""
    tasks = [
        {
            "task": recipe.task,
            "prefix": recipe.prefix,
            "options": dict(recipe.options),
            "weights": recipe.weights,
            "tokenizer": recipe.tokenizer,
            "settings": settings_digest(resolve(recipe.model)),
        }
        for recipe in recipes
    ]
    return {
        "answers": ANSWERS,
        "columns": asdict(columns),
        "tasks": tasks,
        "dtype": job.engine.dtype,
        "attn_implementation": job.engine.attn_implementation,
        "device": job.engine.device,
        "quantization": job.engine.quantization,
        "empty": job.errors.empty,
        "max_row_bytes": job.input.max_row_bytes,
    }


def settings_digest(folder: Path) -> str:
    """Of a checkpoint's small JSON files: labels, pooling, prompts. The tokenizer has a fingerprint of its own."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        if name != "tokenizer.json" and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def make_plan(
    store: Store, job: Job, recipes: Sequence[TaskRecipe], columns: Columns, inputs: Sequence[Input], *, shard_rows: int
) -> Plan:
    """The run's plan: the one that it has, or a new one, written once."""
    what = identity(job, recipes, columns, inputs)
    name = run_id(what)
    if (found := read_plan(store, name)) is not None:
        return found
    head = {"run_id": name, "job": job.name, "identity": what}
    return write_plan(store, head, inputs, columns, shard_rows=shard_rows)


def write_plan(
    store: Store, head: Mapping[str, Any], inputs: Sequence[Input], columns: Columns, *, shard_rows: int
) -> Plan:
    """Cuts the inputs into shards and writes the plan of the run `head["run_id"]`, once. Raises UserError where
    nothing can be read, or the run has another plan.
    """
    shards: list[Shard] = []
    dead: list[Dead] = []
    by_key: dict[str, Input] = {}
    for piece in plan_shards(inputs, shard_rows=shard_rows, columns=columns):
        if isinstance(piece, DeadLetter):
            by_key = by_key or {one.key: one for one in inputs}
            dead.append(Dead(f"{FILES}-{len(dead):07d}", by_key[piece.key], piece.code, piece.message))
        else:
            shards.append(piece)
    if dead and not shards:
        more = f" (and {len(dead) - 1} files more)" if len(dead) > 1 else ""
        raise UserError(f"nothing to read: {dead[0].message}{more}")
    lines = [asdict(one) for one in (*shards, *dead)]
    # JSON has no tuples: what is written must equal what is read, or two launches would differ.
    content = json.loads(json.dumps({**head, "shards": lines}))
    create_plan(store, head["run_id"], content)
    return Plan(head["run_id"], tuple(shards), tuple(dead))


def read_plan(store: Store, name: str) -> Plan | None:
    """The plan of a run, None where it has none. Raises `Damaged`."""
    key = plan_key(name)
    try:
        data = store.get(key)[0]
    except FileNotFoundError:
        return None
    try:
        shards, dead = split(lines_of(data, "shards", store.url(key)))
    except (KeyError, TypeError) as error:
        raise Damaged(f"{store.url(key)}: is damaged: a shard of another form ({error})") from None
    return Plan(name, tuple(shards), tuple(dead))


def split(lines: Iterator[dict[str, Any]]) -> tuple[list[Shard], list[Dead]]:
    shards: list[Shard] = []
    dead: list[Dead] = []
    for line in lines:
        if "code" in line:
            dead.append(Dead(**{**line, "input": Input(**line["input"])}))
        else:
            shards.append(shard_from_dict(line))
    return shards, dead
