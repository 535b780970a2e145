"""`xlmr-ray evaluate`: a labelled set through a checkpoint, or two of them, and how good the answers are."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from xlmr_ray.engine.pipeline import pipeline
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import canonical_task, task_class
from xlmr_ray.text.plural import plural
from xlmr_ray.train.job import DataSection
from xlmr_ray.train.measures.bootstrap import Difference, Figure, difference, draw, figure
from xlmr_ray.train.measures.by_task import LABELLED, OPTIONS, SCIKIT, Measure, Rows, measures_of, metrics
from xlmr_ray.train.rows import WholeReader, read_rows

ALL = "all"


@dataclass(frozen=True)
class Group:
    """Rows that are measured together: all, or those with one `value` in a `column`. Figures by measure's name, one a
    model, and with two models their differences.
    """

    column: str
    value: str
    rows: int
    figures: dict[str, list[Figure]]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of some models on so many rows; `skipped` rows could not be used."""

    task: str
    models: list[str]
    rows: int
    skipped: int
    groups: list[Group]

    def to_json(self) -> str:
        """As JSON; a figure that there is none of is null."""
        return json.dumps(without_nan(asdict(self)), indent=2, ensure_ascii=False)


def evaluate(
    task: str,
    models: Sequence[str],
    data: DataSection,
    read: WholeReader,
    *,
    by: Sequence[str],
    options: Mapping[str, Any],
    resamples: int,
    seed: int,
) -> Evaluation:
    """Raises UserError for a task that is not measured, and for labels that do not fit."""
    name = canonical_task(task)
    task_class(name)
    if name not in OPTIONS:
        raise UserError(f"task {task}: is not evaluated here; these are: {', '.join(OPTIONS)}")
    if name in SCIKIT:
        metrics()  # before anything is read and computed
    roles = roles_of(name, data)
    rows, skipped = read_rows(read, data, roles, label=name in LABELLED, where="data", by=by)
    measured = [measured_of(name, model, rows, roles, options) for model in models]
    if len({tuple(own) for own in measured}) > 1:
        each = "; ".join(f"{model} by {', '.join(own)}" for model, own in zip(models, measured, strict=True))
        raise UserError(f"--model: the models cannot be compared, they are measured by different figures: {each}")
    parts = [(ALL, "", np.arange(len(rows)))]
    for column in by:
        values = np.array([str(value) for value in rows[f"by {column}"].to_pylist()])
        parts += [(column, value, np.flatnonzero(values == value)) for value in np.unique(values).tolist()]
    groups = [group_of(*part, measured, resamples=resamples, seed=seed) for part in parts]
    return Evaluation(name, list(models), len(rows), skipped, groups)


def group_of(
    column: str, value: str, chosen: Rows, measured: Sequence[Mapping[str, Measure]], *, resamples: int, seed: int
) -> Group:
    """The figures of each model over the chosen rows, and with two models their differences."""
    drawn = [
        {name: draw(measure, chosen, count=resamples, seed=seed) for name, measure in own.items()} for own in measured
    ]
    figures = {name: [figure(own[name]) for own in drawn] for name in drawn[0]}
    differences = {name: difference(drawn[0][name], drawn[1][name]) for name in drawn[0]} if len(drawn) > 1 else {}
    return Group(column, value, len(chosen), figures, differences)


def roles_of(task: str, data: DataSection) -> tuple[str, ...]:
    """The text columns that a task's evaluation reads."""
    if task == "text-classification":
        return ("text",) if data.column("text_pair") is None else ("text", "text_pair")
    return {
        "question-answering": ("question", "context"),
        "multiple-choice": ("text", "choices"),
        "token-classification": ("text",),
    }.get(task, ("text", "text_pair"))


def measured_of(
    task: str, model: str, rows: pa.Table, roles: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Measure]:
    """The measures of one model's answers."""
    given = dict(options)
    if task == "text-classification" and "text_pair" in roles:
        given.setdefault("pairs", True)
    prompts = given.pop("prompts", {}) if task == "embedding" else {}
    pipe = pipeline(task, model, **{**given, **OPTIONS[task]})
    if task == "embedding":
        first, second = (
            pipe.scored(pipe.bound({"prompt": prompts[role]} if role in prompts else {}), texts(rows[role]))
            for role in roles
        )
        return measures_of(task, pipe.config, rows, first, second)
    return measures_of(task, pipe.config, rows, pipe.scored(pipe.task, rows.select(list(roles))))


def texts(column: pa.ChunkedArray) -> pa.Table:
    return pa.table({"text": column})


def without_nan(value: Any) -> Any:
    """With null in place of NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def print_evaluation(found: Evaluation, console: Console) -> None:
    """A table: a line a group and model, and with two models the difference."""
    table = Table(box=None, pad_edge=False)
    for name in ("rows of", "", "rows", "model", *found.groups[0].figures):
        table.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for group in found.groups:
        start = (group.column, group.value, f"{group.rows:,}")
        for index, model in enumerate(found.models):
            cells = [figure_in_words(own[index]) for own in group.figures.values()]
            table.add_row(*(start if index == 0 else ("", "", "")), model, *cells)
        if group.differences:
            cells = [f"{d.value:+.4f} ({d.low:+.4f} to {d.high:+.4f}), p {d.p:.3f}" for d in group.differences.values()]
            table.add_row("", "", "", "second less first", *cells)
    console.print(table, highlight=False, markup=False)
    if found.skipped:
        console.print(f"{plural(found.skipped, 'row')} skipped", highlight=False, markup=False)


def figure_in_words(one: Figure) -> str:
    return "none" if math.isnan(one.value) else f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"
