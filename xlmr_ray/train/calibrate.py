"""`xlmr-ray calibrate`: a temperature for a checkpoint's logits, so that scores are as sure as they are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from xlmr_ray.checkpoint.calibration import write_calibration
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.pipeline import pipeline
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import canonical_task, task_class
from xlmr_ray.train.evaluate import roles_of
from xlmr_ray.train.job import DataSection
from xlmr_ray.train.measures.by_task import scores_of
from xlmr_ray.train.measures.calibration_error import calibration_error
from xlmr_ray.train.objectives.label_names import hot_of, indices, single_names
from xlmr_ray.train.objectives.rerank import relevance
from xlmr_ray.train.rows import Reader, read_rows

TASKS = ("text-classification", "rerank")
# Temperatures that are looked at, evenly by their logarithm: an error of a thousandth is far below that of the rows.
LOWEST, HIGHEST, LOOKED_AT = 0.02, 50.0, 4001
MOST_WORSE = 0.01


@dataclass(frozen=True)
class Calibration:
    """`before` and `after` are expected calibration errors, that after of each half of the rows by the temperature of
    the other half. `file` is None where nothing was written, since it would not have become better.
    """

    temperature: float
    rows: int
    skipped: int
    before: float
    after: float
    file: Path | None


def calibrate(task: str, model: str, data: DataSection, read: Reader, *, options: Mapping[str, Any]) -> Calibration:
    """Fits a temperature to labelled rows and writes it into the checkpoint's folder. Raises UserError."""
    name = canonical_task(task)
    task_class(name)
    if name not in TASKS:
        raise UserError(f"task {task}: has no temperature; these have: {', '.join(TASKS)}")
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise UserError(f"--model: {model}: expected a folder of this machine, into which the temperature is written")
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
    logits = logits_of(name, folder, rows.select(list(roles)), options, config.labels)
    chosen = temperature_of(logits, labels)
    order = np.random.default_rng(0).permutation(len(rows))
    halves = order[::2], order[1::2]
    after = 0.0
    for fitted, held in (halves, halves[::-1]):
        own = temperature_of(logits[fitted], labels[fitted]) if len(fitted) else 1.0
        after += error_of(logits[held] / own, labels[held]) * len(held) / len(rows)
    before = sum(error_of(logits[half], labels[half]) * len(half) / len(rows) for half in halves)
    file = None
    if after <= before + MOST_WORSE:
        file = write_calibration(folder, name, {"temperature": chosen, "rows": len(rows)})
    return Calibration(chosen, len(rows), skipped, before, after, file)


def logits_of(
    task: str, folder: Path, texts: pa.Table, options: Mapping[str, Any], labels: Sequence[str]
) -> NDArray[np.float32]:
    """A checkpoint's logits `(N, labels)`, of reranking `(N, 1)`."""
    given = {**options, "function_to_apply": "none"}
    if task == "text-classification":
        given |= {"top_k": None} | ({"pairs": True} if "text_pair" in texts.column_names else {})
    pipe = pipeline(task, folder, **given)
    table = pipe.scored(pipe.task, texts)
    if task == "text-classification":
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
