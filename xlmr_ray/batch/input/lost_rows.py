"""How many rows are lost with a file that nothing can be read of, by the bytes that a row takes in files like it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from xlmr_ray.batch.input.file import InputFile
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
    size_read, rows_read = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for index in np.flatnonzero(rows).tolist():
        for kind in _kinds(shards.inputs[index]):
            size_read[kind] += shards.inputs[index].size
            rows_read[kind] += int(rows[index])

    def counted(letter: DeadLetter) -> DeadLetter:
        one = shards.inputs[indices[letter.key]]
        kind = next((kind for kind in _kinds(one) if kind in rows_read), None)
        if letter.rows is not None or kind is None:
            return letter
        return replace(letter, rows=max(1, round(one.size * rows_read[kind] / size_read[kind])), estimated=True)

    return [_with_message(counted(letter)) for letter in letters]


def _kinds(one: InputFile) -> tuple[tuple[str, ...], ...]:
    """Of files like it, the most alike first."""
    return (one.format, one.compression), (one.format,), ()


def _with_message(letter: DeadLetter) -> DeadLetter:
    if letter.rows is None or letter.rows < 2:
        return letter
    about = ", an estimate" if letter.estimated else ""
    return replace(letter, message=f"{letter.message} ({plural(letter.rows, 'row')} lost{about})")
