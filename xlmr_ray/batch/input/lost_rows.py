"""How many rows are lost with a file that nothing can be read of, by the bytes that a row takes in files like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.batch.input.file import Input
from xlmr_ray.batch.input.planning import DeadLetter
from xlmr_ray.batch.input.shard_table import INPUT, ROWS, ShardTable
from xlmr_ray.text.plural import plural


def count_lost(letters: Sequence[DeadLetter], shards: ShardTable, indices: Mapping[str, int]) -> list[DeadLetter]:
    """The letters, each with its number of rows and that number in its message. `indices`: those of the inputs by key.

    A number that no part of the file gives is estimated: the file's bytes by the mean bytes a row of files that were
    read whole, those of its format and compression before those of its format before all.
    """
    if not letters:
        return []
    rows = np.bincount(shards.columns[:, INPUT], shards.columns[:, ROWS], len(shards.inputs)).astype(np.int64)
    rows[[indices[letter.key] for letter in letters]] = 0  # what was read of them is no measure
    return [
        _with_message(_estimated(letter, shards.inputs[indices[letter.key]], shards.inputs, rows)) for letter in letters
    ]


def _estimated(letter: DeadLetter, one: Input, inputs: Sequence[Input], rows: NDArray[np.int64]) -> DeadLetter:
    if letter.rows is not None:
        return letter
    read = [(inputs[index], int(rows[index])) for index in np.flatnonzero(rows).tolist()]
    alike = [
        [(other, count) for other, count in read if (other.format, other.compression) == (one.format, one.compression)],
        [(other, count) for other, count in read if other.format == one.format],
        read,
    ]
    for found in alike:
        if found:
            a_row = sum(other.size for other, _ in found) / sum(count for _, count in found)
            return replace(letter, rows=max(1, round(one.size / a_row)), estimated=True)
    return letter


def _with_message(letter: DeadLetter) -> DeadLetter:
    if letter.rows is None or letter.rows < 2:
        return letter
    about = ", an estimate" if letter.estimated else ""
    return replace(letter, message=f"{letter.message} ({plural(letter.rows, 'row')} lost{about})")
