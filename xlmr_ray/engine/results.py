"""What an engine gives for sequences, for a task's encoded table, and as a task's output."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.tasks.encoded import documents, keep_documents, ragged, targets_of
from xlmr_ray.tasks.task import EncoderTask


@dataclass(frozen=True)
class Results:
    """Of sequences, for several tasks: each one's results `(R, ...)`, a row a unit of the task, in the order of the
    sequences.

    `failed` are the sequences without results (their rows are NaN): number -> (code, message).
    """

    raw: list[NDArray[np.float32]]
    failed: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class TaskResults:
    """Of an encoded table, for one task: results `(R, ...)`, a row a unit, and the sequences that failed."""

    raw: NDArray[np.float32]
    failed: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class TaskOutput:
    """The output `table` of one task, a row for each document that has not `failed`, in their order. Those that have:
    number -> (code, message).
    """

    table: pa.Table
    failed: dict[int, tuple[str, str]]


def output_of(task: EncoderTask, encoded: pa.Table, results: TaskResults) -> TaskOutput:
    """The task's output for its encoded table: a document fails with any of its sequences."""
    of_sequence = documents(encoded)
    failed = {int(of_sequence[i]): failure for i, failure in results.failed.items()}
    kept = np.ones(int(of_sequence[-1]) + 1 if len(of_sequence) else 0, np.bool_)
    kept[list(failed)] = False
    raw, left = results.raw, encoded
    if failed:
        _, row_splits = ragged(encoded["input_ids"])
        targets = targets_of(encoded)
        rows = ResultRows.of(task.unit, row_splits, None if targets is None else ragged(targets)[0])
        left, stayed = keep_documents(encoded, kept)
        raw = raw[rows.keep(stayed)]
    table = task.postprocess(raw, left)
    if table.num_rows != kept.sum():
        raise AssertionError(f"{type(task).__name__}: got {table.num_rows} output rows, expected {kept.sum()}")
    return TaskOutput(table, failed)
