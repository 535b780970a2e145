"""The shards of a plan as integer columns: a million of them take 56 MB, and one is made when it is asked for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.shard import Shard

# The index of the input in the plan's list, the shard's number in the input: both in the shard's id. Then what is read.
INPUT, PART, FIRST_ROW, ROWS, START, STOP, LEAD = range(7)


class ShardTable(Sequence[Shard]):
    """Shards in the order of the plan: by input, and in an input by number.

    `inputs` is the plan's whole list, in its order; a shard's id has the index of its input.
    """

    def __init__(self, inputs: Sequence[InputFile]) -> None:
        self.inputs = inputs
        self.headers: dict[int, tuple[str, ...]] = {}  # by the index of the input, where its format has one
        self._numbers = array("q")

    def add(self, shard: Shard) -> None:
        """One shard more. Raises ValueError where it does not come after the last one, or is not of its input."""
        index, part = _numbers_of(shard.id)
        if not 0 <= index < len(self.inputs) or self.inputs[index] != shard.input:
            raise ValueError(f"shard {shard.id}: is not of the input at its index")
        self._add(index, part, shard.first_row, shard.rows, shard.start, shard.stop, shard.lead)
        if shard.header:
            self.headers[index] = shard.header

    def add_line(self, line: Mapping[str, Any]) -> None:
        """One shard more, as `lines` gave it. Raises ValueError, KeyError or TypeError for what is none."""
        index, part = _numbers_of(line["id"])
        if not 0 <= index < len(self.inputs):
            raise ValueError(f"shard {line['id']}: of {len(self.inputs)} inputs")
        start = line["start"]
        lead = line.get("lead", start if self.inputs[index].compression else 0)
        self._add(index, part, line["first_row"], line["rows"], start, line["stop"], lead)
        if "header" in line:
            self.headers[index] = tuple(line["header"])

    def _add(self, index: int, part: int, first_row: int, rows: int, start: int, stop: int, lead: int) -> None:
        last = (self._numbers[-7], self._numbers[-6]) if self._numbers else (-1, -1)
        if (index, part) <= last or min(first_row, rows, start, stop, lead, start - lead) < 0:
            raise ValueError(f"shard {_shard_id(index, part)}: is out of order")
        self._numbers.extend((index, part, first_row, rows, start, stop, lead))

    def lines(self) -> Iterator[dict[str, Any]]:
        """Each shard as the plan has it; what is the input's is said once, in the list of inputs or the first line."""
        said = -1
        for index, part, first_row, rows, start, stop, lead in self._rows():
            line = {"id": _shard_id(index, part), "first_row": first_row, "rows": rows, "start": start, "stop": stop}
            if index != said and index in self.headers:
                line["header"] = list(self.headers[index])
            if lead and not self.inputs[index].compression:  # which is read from its start
                line["lead"] = lead
            said = index
            yield line

    @property
    def columns(self) -> NDArray[np.int64]:
        """`(shards, 7)`, a view: while one is held, no shard can be added."""
        return np.frombuffer(self._numbers, np.int64).reshape(-1, 7) if self._numbers else np.empty((0, 7), np.int64)

    @property
    def rows(self) -> int:
        """Of all shards."""
        return int(self.columns[:, ROWS].sum())

    @property
    def most_rows(self) -> int:
        """Of one shard."""
        return int(self.columns[:, ROWS].max(initial=0))

    def ids(self) -> Iterator[str]:
        return (_shard_id(index, part) for index, part, *_ in self._rows())

    def indices(self, ids: Iterable[str]) -> Iterator[int]:
        """Of each id its index in the table, -1 where it has none."""
        keys = (self.columns[:, INPUT] << 32) + self.columns[:, PART]
        for name in ids:
            try:
                index, part = _numbers_of(name)
            except ValueError:
                yield -1
                continue
            key = (index << 32) + part
            at = int(np.searchsorted(keys, key))
            yield at if at < len(keys) and keys[at] == key else -1

    def __len__(self) -> int:
        return len(self._numbers) // 7

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        where = range(len(self))[at] * 7
        index, part, first_row, rows, start, stop, lead = self._numbers[where : where + 7]
        header = self.headers.get(index, ())
        return Shard(_shard_id(index, part), self.inputs[index], first_row, rows, start, stop, header, lead)

    def _rows(self) -> Iterator[tuple[int, ...]]:
        for at in range(0, len(self._numbers), 7):
            yield tuple(self._numbers[at : at + 7])


def _shard_id(index: int, part: int) -> str:
    return f"{index:07d}-{part:06d}"


def input_index(name: str) -> int:
    """The index of its input in the plan's list, out of a shard's id."""
    return _numbers_of(name)[0]


def _numbers_of(name: str) -> tuple[int, int]:
    index, dash, part = name.partition("-")
    if not (dash and index.isdecimal() and part.isdecimal()):
        raise ValueError(f"shard id {name!r}: want two numbers")
    return int(index), int(part)
