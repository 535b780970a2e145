"""The plan of a run: its tasks, its columns, and its shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xlmr_ray.batch.cluster import on_gpu
from xlmr_ray.batch.identity import identity, run_id
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.kept_types import KeptTypes, schema_from_text, schema_to_text
from xlmr_ray.batch.input.lost_rows import count_lost
from xlmr_ray.batch.input.on_cluster import planning_workers
from xlmr_ray.batch.input.planning import SHARD_BYTES, DeadLetter, plan_shards, step_back
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.reader import Reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import INPUT, ShardTable
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.json_by_line import Damaged, items_of, json_pieces
from xlmr_ray.batch.ledger.manifest import not_read
from xlmr_ray.batch.ledger.parts import Part, ShardSize, folder, is_in_parts, parts, shard_size
from xlmr_ray.batch.ledger.record import plan_head, plan_key
from xlmr_ray.batch.ledger.spool import spooled
from xlmr_ray.batch.output_columns import check_output_columns
from xlmr_ray.batch.stages.checkpoints import bound_task
from xlmr_ray.batch.stages.recipe import TaskRecipe
from xlmr_ray.batch.store.base import Exists, Store, create_file
from xlmr_ray.checkpoint.digest import files_stamp, weights_digest
from xlmr_ray.checkpoint.files import WITH_ADAPTER, resolve
from xlmr_ray.checkpoint.identity import encoder_identity
from xlmr_ray.engine.runners import check_quantizable
from xlmr_ray.engine.unloaded import check_weights
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import bind_task, task_class
from xlmr_ray.text.plural import plural
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

# Begins the ids of shards that stand for a file that cannot be read at all: one error row, at row -1.
FILES = "files"
LONG = 1 << 30  # bytes of inputs; two cores read as many, compressed, in some 10 to 20 s


@dataclass(frozen=True)
class Dead:
    """A file that cannot be read, or the rest of one, as a shard: what the plan knew of it, and why.

    `rows` are those that are lost with it, at least 1, `estimated` or counted.
    """

    id: str
    input: InputFile
    code: str
    message: str
    rows: int = 1
    estimated: bool = False


@dataclass(frozen=True)
class Plan:
    """All shards of a run; `dead` are the files that cannot be read, a shard each; `kept` the types that kept columns
    are cast to, None where all files have the same.
    """

    run_id: str
    shards: ShardTable
    dead: tuple[Dead, ...]
    kept: pa.Schema | None = None

    @property
    def rows(self) -> int:
        """Of the input: those that are lost with files that cannot be read, too."""
        return self.shards.rows + sum(file.rows for file in self.dead)

    def ids(self) -> Iterator[str]:
        """Of all shards, the dead files' too, in the plan's order."""
        yield from self.shards.ids()
        for file in self.dead:
            yield file.id


def task_recipes(job: Job) -> tuple[TaskRecipe, ...]:
    """The job's tasks with their checkpoints found and hashed, and their options checked against them."""
    recipes = []
    for section in job.tasks:
        model = job.checkpoint(section)
        options = section.options
        if job.engine.max_length != "auto":
            options.setdefault("max_length", job.engine.max_length)
        kind = task_class(section.task)
        for role, option in kind.optional_roles.items():
            if job.input.column(role) is not None:
                options.setdefault(option, True)
        options |= kind.unmeasured(options)
        prefix = f"{section.name or section.task}_".replace("-", "_") if len(job.tasks) > 1 else ""
        folder = resolve(model)
        tokenizer = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer=job.engine.pre_tokenizer)
        task = bind_task(section.task, folder, options)
        recipe = TaskRecipe(
            task=section.task,
            prefix=prefix,
            model=absolute(model),
            weights=weights_digest(folder, task.files),
            encoder=encoder_identity(folder),
            stamp=files_stamp(folder, task.files),
            tokenizer=tokenizer.fingerprint,
            # As they were bound: what an option names, such as a file, has been read.
            options={name: getattr(task, name) for name in options},
        )
        check_quantizable(section.task, task, job.engine.quantization)
        check_weights(task, folder)
        # What does not fit the tokenizer is said now, and not by the first shard.
        task.prepare(pa.table({role: pa.array([], pa.string()) for role in task.roles}), tokenizer)
        recipes.append(recipe)
    return tuple(recipes)


def absolute(model: str) -> str:
    """A folder's name, with or without @revision, as one that means the same in Ray's processes, which are elsewhere;
    other names as they are.
    """
    if split := WITH_ADAPTER.fullmatch(model):
        return f"{absolute(split[1])}[{split[2]}={absolute(split[3])}]"
    for name in (model, model.rpartition("@")[0]):
        if name and "://" not in name and Path(name).expanduser().exists():
            return str(Path(name).expanduser().absolute()) + model[len(name) :]
    return model


def columns_of(job: Job, recipes: Sequence[TaskRecipe]) -> Columns:
    """The columns to read: those that the tasks need. Raises UserError where the job names none for a role, or two
    columns of the output would have one name.
    """
    text: dict[str, str] = {}
    tasks = [bound_task(recipe) for recipe in recipes]
    for recipe, task in zip(recipes, tasks, strict=True):
        for role in task.roles:
            column = job.input.column(role)
            if column is None:
                raise UserError(f"input.{role}: task {recipe.task} reads it; name its column")
            text[role] = column
    written = [(recipe.task, recipe.prefix, task.schema) for recipe, task in zip(recipes, tasks, strict=True)]
    kept = job.input.kept
    columns = Columns(
        text=text,
        id=job.input.id,
        keep=tuple(kept.values()),
        renamed=tuple((name, column) for column, name in kept.items() if name != column),
    )
    check_output_columns(columns, written)
    return columns


def check_quantization(job: Job) -> None:
    """Raises UserError for matmuls in eight bits where the encoders will be on processors that have none of the kind.

    An encoder would say it, too, a cluster's start later.
    """
    asked, there = job.engine.quantization, "cuda" if on_gpu(job.engine.device) else "cpu"
    if (asked, there) == ("int8", "cuda"):
        raise UserError("engine.quantization int8 is for CPUs, the encoders will be on GPUs: add engine.device: cpu")
    if (asked, there) == ("fp8", "cpu"):
        raise UserError("engine.quantization fp8 is for GPUs, the encoders will be on CPUs: take int8")


@dataclass(frozen=True)
class Unplanned:
    """A run that has no plan yet, which is made in parts; for the fields see `write_plan`."""

    store: Store
    head: Mapping[str, Any]
    inputs: Sequence[InputFile]
    columns: Columns
    size: ShardSize
    readers: Mapping[str, Reader]
    ignored: Sequence[str]

    def so_far(self) -> Plan:
        """Without shards."""
        return Plan(self.head["run_id"], ShardTable(self.inputs), ())

    def write(self, use: Callable[[Part], None] = lambda part: None, stop: Callable[[], bool] = lambda: False) -> Plan:
        """As `write_plan`. `use` is called with each part when it is there; for `stop` see `plan_shards`."""
        name = self.head["run_id"]

        def cut_from(first: int) -> Iterator[Shard | DeadLetter]:
            left = self.inputs[first:]
            return plan_shards(
                left,
                shard_rows=self.size.rows,
                shard_bytes=self.size.bytes,
                columns=self.columns,
                readers=self.readers,
                pool=planning_workers(len(left), beside=True),
                first=first,
                start=step_back,
                stop=stop,
            )

        def pieces() -> Iterator[Shard | DeadLetter]:
            for part in parts(self.store, name, self.inputs, cut_from):
                use(part)
                yield from part.shards
                yield from part.dead

        plan = _plan_of_pieces(self.store, self.head, self.inputs, pieces(), KeptTypes(()), ignored=self.ignored)
        for entry in list(self.store.list(folder(name))):
            self.store.delete(entry.key)
        return plan


def is_long(inputs: Sequence[InputFile], readers: Mapping[str, Reader]) -> bool:
    """Whether planning takes so long that a run had better begin before its end. It can where the kept columns' types
    follow from the formats: else the last file may change those of the first one's rows.
    """
    typed = any(readers[name].typed for name in {one.format for one in inputs})
    return len(inputs) > 1 and not typed and sum(one.size for one in inputs) >= LONG


def begin_plan(
    store: Store,
    job: Job,
    recipes: Sequence[TaskRecipe],
    columns: Columns,
    inputs: Sequence[InputFile],
    *,
    shard_rows: int,
    shard_bytes: Callable[[Sequence[InputFile]], int] = lambda inputs: SHARD_BYTES,
    ignored: Sequence[str] = (),
) -> Plan | Unplanned:
    """The run's plan: the one that it has, or a new one, written once; where that takes long, how it is made.
    `shard_bytes` is asked where a plan is made; `ignored`: see `write_plan`.
    """
    what = identity(job, recipes, columns, inputs)
    name = run_id(what)
    if (plan := read_plan(store, name)) is not None:
        return plan
    head = {"run_id": name, "job": job.name, "identity": what}
    readers, limit = job.input.readers, job.input.limit
    if limit is None and (is_long(inputs, readers) or is_in_parts(store, name)):
        size = shard_size(store, name, lambda: ShardSize(shard_rows, shard_bytes(inputs)))
        return Unplanned(store, head, inputs, columns, size, readers, ignored)
    return write_plan(
        store,
        head,
        inputs,
        columns,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes(inputs),
        readers=readers,
        limit=limit,
        ignored=ignored,
    )


def write_plan(
    store: Store,
    head: Mapping[str, Any],
    inputs: Sequence[InputFile],
    columns: Columns,
    *,
    shard_rows: int,
    shard_bytes: int = SHARD_BYTES,
    readers: Mapping[str, Reader] = READERS,
    kept: KeptTypes | None = None,
    limit: int | None = None,
    ignored: Sequence[str] = (),
) -> Plan:
    """Cuts the inputs into shards and writes the plan of the run `head["run_id"]`, once: where another launch of the
    run was faster, its plan holds. `kept`: types that are settled already; `limit`: see `plan_shards`; where it is
    reached, the plan ends with the last input that is read; `ignored`: files beside the inputs that are not read.
    Raises UserError where nothing can be read.
    """
    kept = kept or KeptTypes(columns.extra)
    pieces = plan_shards(
        inputs,
        shard_rows=shard_rows,
        shard_bytes=shard_bytes,
        columns=columns,
        readers=readers,
        kept=kept,
        limit=limit,
        pool=planning_workers(len(inputs)) if limit is None else None,
    )
    return _plan_of_pieces(store, head, inputs, pieces, kept, limit=limit, ignored=ignored)


def _plan_of_pieces(
    store: Store,
    head: Mapping[str, Any],
    inputs: Sequence[InputFile],
    pieces: Iterable[Shard | DeadLetter],
    kept: KeptTypes,
    *,
    limit: int | None = None,
    ignored: Sequence[str],
) -> Plan:
    """The plan of all these pieces, whose kept columns have those types when they are taken."""
    name = head["run_id"]
    shards = ShardTable(inputs)
    letters: list[DeadLetter] = []
    for piece in pieces:
        if isinstance(piece, DeadLetter):
            letters.append(piece)
        else:
            shards.add(piece)
    if letters and not shards:
        more = f" (and {plural(len(letters) - 1, 'more file')})" if len(letters) > 1 else ""
        raise UserError(f"nothing to read: {letters[0].message}{more}")
    if shards.rows == limit:
        shards.inputs = inputs = inputs[: int(shards.columns[-1, INPUT]) + 1]
    indices = {one.key: index for index, one in enumerate(inputs)} if letters else {}
    dead: list[Dead] = []
    for number, letter in enumerate(count_lost(letters, shards, indices)):
        one = inputs[indices[letter.key]]
        rows = letter.rows or 1
        estimated = letter.estimated and rows > 1
        dead.append(Dead(f"{FILES}-{number:07d}", one, letter.code, letter.message, rows, estimated))

    def lines() -> Iterator[dict[str, Any]]:
        yield from shards.lines()
        for file in dead:
            line = {"id": file.id, "input": indices[file.input.key], "code": file.code, "message": file.message}
            yield {**line, "rows": file.rows, "estimated": file.estimated} if file.rows > 1 else line

    types = kept.schema()
    if types is not None:
        head = {**head, "kept": schema_to_text(types)}
    if (beside := not_read(ignored)) is not None:
        head = {**head, "not_read": asdict(beside)}
    try:
        with spooled(json_pieces(head, {"inputs": (one.line() for one in inputs), "shards": lines()})) as file:
            create_file(store, plan_key(name), file)
    except Exists:
        found = read_plan(store, name)
        assert found is not None
        return found
    return Plan(name, shards, tuple(dead), types)


def read_plan(store: Store, name: str) -> Plan | None:
    """The plan of a run, None where it has none. Raises `Damaged`."""
    key = plan_key(name)
    dead: list[Dead] = []
    try:
        types = plan_head(store, name).get("kept")
    except FileNotFoundError:
        return None
    try:
        kept = None if types is None else schema_from_text(types)
        inputs = [InputFile(**line) for line in items_of(store, key, "inputs")]
        shards = ShardTable(inputs)
        for line in items_of(store, key, "shards"):
            if "code" in line:
                dead.append(Dead(**{**line, "input": inputs[line["input"]]}))
            else:
                shards.add_line(line)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise Damaged(f"{store.url(key)}: is damaged: a line of another form ({error})") from None
    return Plan(name, shards, tuple(dead), kept)
