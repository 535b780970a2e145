"""`xlmr-ray calibrate`: a temperature for a checkpoint's logits, so that scores are as sure as they are right, and
thresholds for its labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from xlmr_ray.checkpoint.adapter import is_adapter
from xlmr_ray.checkpoint.calibration import write_calibration
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.pipeline import pipeline
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import canonical_task, task_class
from xlmr_ray.tasks.task import EncoderTask
from xlmr_ray.tasks.text_classification import TextClassification
from xlmr_ray.text.plural import plural, some
from xlmr_ray.text.progress_line import say
from xlmr_ray.train.evaluate import roles_of
from xlmr_ray.train.job import DataSection
from xlmr_ray.train.measures.by_task import scores_of
from xlmr_ray.train.measures.calibration_error import calibration_error
from xlmr_ray.train.objectives.label_names import hot_of, indices, single_names
from xlmr_ray.train.objectives.rerank import relevance
from xlmr_ray.train.rows import WholeReader, read_rows
from xlmr_ray.train.thresholds import SURE, Target, Threshold, least_rows, threshold_of

TASKS = ("text-classification", "rerank")
# Temperatures that are looked at, evenly by their logarithm: an error of a thousandth is far below that of the rows.
LOWEST, HIGHEST, LOOKED_AT = 0.02, 50.0, 4001
MOST_WORSE = 0.01


@dataclass(frozen=True)
class Calibration:
    """`before` and `after` are expected calibration errors, that after of each half of the rows by the temperature of
    the other half. `has_best` is whether one temperature is best: where all are right, the surer the better. `better`
    is whether it was written: not where scores would become worse. `thresholds` are those of the labels by the scores
    that are given then, where a target asks for them. `file` is None where nothing was written.
    """

    temperature: float
    rows: int
    skipped: int
    before: float
    after: float
    has_best: bool
    better: bool
    target: Target | None
    thresholds: list[Threshold]
    file: Path | None


def calibrate(
    task: str,
    model: str,
    data: DataSection,
    read: WholeReader,
    *,
    options: Mapping[str, Any],
    target: Target | None = None,
) -> Calibration:
    """Fits a temperature, and with a target thresholds, to labelled rows and writes them into the checkpoint's folder,
    in place of what was there. Raises UserError.
    """
    name = canonical_task(task)
    task_class(name)
    if name not in TASKS:
        raise UserError(f"task {task}: has no temperature; these have: {', '.join(TASKS)}")
    if target is not None and name != "text-classification":
        raise UserError(f"task {task}: has no thresholds; text-classification has, of checkpoints with one label, too")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"--model: {model}: expected a folder of this machine, into which the temperature is written")
    if is_adapter(folder):
        raise UserError(
            f"{folder}: an adapter, beside which no calibration is read; save the model that it makes, with "
            "from_pretrained and save_pretrained of its class, and calibrate that"
        )
    config = XLMRobertaConfig.from_dict(read_config(folder))
    if config.problem_type == "regression":
        raise UserError(f"{folder}: its scores are numbers (problem_type regression), which have no temperature")
    roles = roles_of(name, data)
    rows, skipped = read_rows(read, data, roles, label=True, where="data")
    several = config.problem_type == "multi_label_classification" or len(config.labels) == 1
    labels: NDArray[Any]  # before anything is computed
    if name == "rerank":
        labels = relevance(rows)[:, None]
    else:
        labels = hot_of(rows, config.labels) if several else indices(rows, single_names(rows), config.labels)
    given = {**options, "function_to_apply": "none"}
    if name == "text-classification":
        given |= {"top_k": None} | ({"pairs": True} if "text_pair" in roles else {})
    pipe = pipeline(name, folder, **given)
    plain, engine = pipe.task, pipe.engine
    assert isinstance(plain, EncoderTask)
    assert isinstance(engine, Engine)
    encoded = plain.prepare(rows.select(list(roles)), pipe.tokenizer)
    results = engine.results([encoded])[0]
    for code, message in results.failed.values():
        raise UserError(f"data: {code}: {message}")
    logits = output_logits(plain.postprocess(results.raw, encoded), config.labels)
    chosen = temperature_of(logits, labels)
    order = np.random.default_rng(0).permutation(len(rows))
    halves = order[::2], order[1::2]
    after = 0.0
    for fitted, held in (halves, halves[::-1]):
        own = temperature_of(logits[fitted], labels[fitted]) if len(fitted) else 1.0
        after += error_of(logits[held] / own, labels[held]) * len(held) / len(rows)
    before = sum(error_of(logits[half], labels[half]) * len(half) / len(rows) for half in halves)
    has_best = chosen > LOWEST * 1.01
    better = has_best and after <= before + MOST_WORSE
    values: dict[str, Any] = {"temperature": chosen} if better else {}
    thresholds: list[Threshold] = []
    if target is not None:
        assert isinstance(plain, TextClassification)
        scored = replace(plain, function_to_apply=None, temperature=chosen if better else None)
        scores = output_logits(scored.postprocess(results.raw, encoded), config.labels)
        hot = labels > 0.5 if labels.ndim == 2 else labels[:, None] == np.arange(len(config.labels))
        each = zip(config.labels, scores.T, hot.T, strict=True)
        thresholds = [threshold_of(label, own, has, target) for label, own, has in each]
        values |= {"target": asdict(target), "thresholds": {one.label: one.value for one in thresholds}}
    file = write_calibration(folder, name, {**values, "rows": len(rows)}) if values else None
    return Calibration(chosen, len(rows), skipped, before, after, has_best, better, target, thresholds, file)


def output_logits(table: pa.Table, labels: Sequence[str]) -> NDArray[np.float32]:
    """The numbers in an output: of all labels `(N, labels)`, of reranking `(N, 1)`."""
    if "labels" in table.column_names:
        return scores_of(table, labels)
    logits: NDArray[np.float32] = table["score"].to_numpy()[:, None]
    return logits


def temperature_of(logits: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """The temperature at which labels are likeliest: `logits (N, labels)`, and `labels (N)` the labels' indices, or
    `(N, labels)` from 0 to 1 for labels that are independent of each other.
    """
    x = torch.from_numpy(logits.astype(np.float64))
    y = torch.from_numpy(labels)

    def loss(log: float) -> float:
        scaled = x / np.exp(log)
        if y.dim() == 1:
            return float(F.cross_entropy(scaled, y))
        return float(F.binary_cross_entropy_with_logits(scaled, y.double()))

    # The loss is convex in 1 / temperature: one valley, found by cutting the range.
    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), LOOKED_AT)
    low, high = 0, len(grid) - 1
    while high - low > 2:
        left, right = low + (high - low) // 3, high - (high - low) // 3
        low, high = (low, right) if loss(grid[left]) <= loss(grid[right]) else (left, high)
    return float(np.exp(min(grid[low : high + 1], key=loss)))


def error_of(logits: NDArray[np.floating], labels: NDArray[Any]) -> float:
    """The expected calibration error of logits, as `xlmr-ray evaluate` has it."""
    x = torch.from_numpy(np.asarray(logits, np.float64))
    if not len(x):
        return 0.0
    if labels.ndim == 1:
        scores = x.softmax(1).numpy()
        return calibration_error(scores.max(1), scores.argmax(1) == labels)
    return calibration_error(x.sigmoid().numpy().ravel(), labels.ravel() > 0.5)


def print_calibration(found: Calibration, console: Console) -> None:
    """What was found, with a line a threshold."""
    say(
        console,
        f"temperature {found.temperature:.4f} of {plural(found.rows, 'row')}; expected calibration error "
        f"{found.before:.4f}, {found.after:.4f} with it (each half of the rows by the other's)",
    )
    if not found.better:
        why = "scores would become worse" if found.has_best else "the rows do not tell it, since all of them are right"
        say(console, f"the temperature was not written: {why}")
    if found.thresholds:
        table = Table(box=None, pad_edge=False)
        for name in ("label", "rows", "threshold", "above", "precision", "recall"):
            table.add_column(name, justify="left" if name == "label" else "right", overflow="fold")
        for one in found.thresholds:
            shares = fraction(one.right, one.above), fraction(one.right, one.rows)
            value = "none" if one.value is None else f"{one.value:.4f}"
            table.add_row(one.label, f"{one.rows:,}", value, f"{one.above:,}", *shares)
        console.print(table, highlight=False, markup=False)
    if found.target is not None and (left := [one.label for one in found.thresholds if not one.value]):
        say(
            console,
            f"no threshold is known to keep {found.target.kind} {found.target.value:g} of {some(left, 12)}, and "
            + ("none is set: " if found.target.kind == "precision" else "all rows are above: ")
            + f"it takes at least {least_rows(found.target)} rows without a mistake to be {SURE:.0%} sure",
        )
    if found.skipped:
        say(console, f"{plural(found.skipped, 'row')} skipped")
    say(console, str(found.file) if found.file else "nothing was written")


def fraction(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else ""
