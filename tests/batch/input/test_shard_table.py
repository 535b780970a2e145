import json
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.shard_table import ShardTable
from xlmr_ray.batch.stages.packs import packed, unpacked


def inputs_of(count):
    return [InputFile(f"s3://in/{place:04}.csv", "csv", "", 1000 + place, f"etag{place}") for place in range(count)]


def table_of(parts, rows=3, header=()):
    """A table with so many shards of each input."""
    table = ShardTable(inputs_of(len(parts)))
    for place, count in enumerate(parts):
        for part in range(count):
            start = part * rows
            table.add(Shard(f"{place:07d}-{part:06d}", table.inputs[place], start, rows, start, start + rows, header))
    return table


numbers = st.integers(0, 2**62)


@given(st.lists(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=4), max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_shards_come_back_as_they_were(ranges, data):
    inputs = inputs_of(len(ranges))
    table = ShardTable(inputs)
    shards = []
    for place, of_input in enumerate(ranges):
        header = tuple(data.draw(st.lists(st.text(), max_size=3)))
        for part, (first_row, rows, start, stop) in enumerate(of_input):
            shards.append(Shard(f"{place:07d}-{part:06d}", inputs[place], first_row, rows, start, stop, header))
            table.add(shards[-1])
    again = ShardTable(inputs)
    for line in table.lines():
        again.add_line(json.loads(json.dumps(line)))
    for one in (table, again):
        assert list(one) == shards
        assert [one[at] for at in range(len(one))] == shards
        assert one[1:3] == shards[1:3]
        assert list(one.ids()) == [shard.id for shard in shards]
        assert list(one.indices(one.ids())) == list(range(len(shards)))
        assert sum(shard.rows for shard in shards) == one.rows or one.rows < 0  # over 2**63 is over any corpus
    with pytest.raises(IndexError):
        table[len(shards)]


@given(st.lists(st.integers(0, 5), max_size=6), st.lists(st.text(max_size=16), max_size=5))
@settings(max_examples=40, deadline=None)
def test_what_is_not_there_has_no_place(parts, others):
    table = table_of(parts)
    known = set(table.ids())
    names = [*others, "0000099-000000", "0000000-000099", "files-0000000", *known]
    for name, place in zip(names, table.indices(names), strict=True):
        assert (place >= 0) == (name in known)
        assert place < 0 or table[place].id == name


@pytest.mark.parametrize(
    "line",
    [
        {"id": "0000000-000001"},
        {"id": "0000000-000001", "first_row": 0, "rows": "3", "start": 0, "stop": 3},
        {"id": "0000000-000001", "first_row": 0, "rows": -3, "start": 0, "stop": 3},
        {"id": "0000000-000000", "first_row": 0, "rows": 3, "start": 0, "stop": 3},
        {"id": "0000009-000000", "first_row": 0, "rows": 3, "start": 0, "stop": 3},
        {"id": "mine", "first_row": 0, "rows": 3, "start": 0, "stop": 3},
        {"id": 7, "first_row": 0, "rows": 3, "start": 0, "stop": 3},
    ],
    ids=["incomplete", "text", "negative", "twice", "no input", "no place", "no id"],
)
def test_a_line_that_is_no_shard(line):
    table = table_of([1])
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        table.add_line(line)
    assert len(table) == 1


def test_a_shard_of_another_input_is_refused():
    table = ShardTable(inputs_of(2))
    with pytest.raises(ValueError, match="not of the input at its index"):
        table.add(Shard("0000001-000000", table.inputs[0], 0, 1, 0, 1))


def test_fifty_bytes_a_shard():
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = table_of([20_000])
        assert (tracemalloc.get_traced_memory()[0] - before) / len(table) < 60
    finally:
        tracemalloc.stop()
    assert sys.getsizeof(table[0]) > 60  # one object a shard would cost more by itself
    assert table.columns.dtype == np.int64


@pytest.mark.parametrize("size", [1, 3, 64])
def test_packs_hold_every_shard_once_in_order(size):
    table = table_of([5, 0, 9], header=("id", "téxt"))
    blocks = list(packed(table, size))
    assert [block.num_rows for block in blocks] == [1] * -(-14 // size)
    shards = [json.loads(text) for block in blocks for text in unpacked(block)]
    assert [shard["id"] for shard in shards] == list(table.ids())
    assert shards[0]["header"] == ["id", "téxt"]
    assert list(packed([], size)) == []
