"""A shard on its way: whatever its tables hold, and whatever goes wrong."""

import pyarrow as pa
import pytest

from xlmr_ray.batch.stages.block import FAILURE, from_block, guarded, raise_failure, to_block
from xlmr_ray.errors import JobFailed, UserError


def test_tables_of_any_kind_come_back_as_they_were():
    tables = {
        "empty": pa.table({"a": pa.array([], pa.list_(pa.int32()))}),
        "nulls": pa.table({"n": pa.nulls(3), "s": pa.array(["a", None, ""], pa.large_string())}),
        "many": pa.table({"x": pa.chunked_array([[1, 2], [3]])}),
    }
    block = to_block('{"id": "1"}', tables)
    assert block.num_rows == 1
    text, back = from_block(block)
    assert text == '{"id": "1"}'
    assert {name: table.to_pylist() for name, table in back.items()} == {n: t.to_pylist() for n, t in tables.items()}
    assert all(back[name].schema == tables[name].schema for name in tables)


def test_blocks_that_were_joined_are_noticed():
    block = to_block("{}", {})
    with pytest.raises(AssertionError, match="a block of 2 rows"):
        from_block(pa.concat_tables([block, block]))


def test_failures_are_carried_as_one_line():
    block = to_block("s", {})

    def refuse(block):
        raise UserError("this file, that reason")

    def break_down(block):
        raise KeyError("a\nb")

    said = guarded(refuse, block)
    with pytest.raises(UserError, match="this file, that reason"):
        raise_failure(said.to_pylist()[0])
    assert guarded(break_down, said) is said
    defect = guarded(break_down, block)[FAILURE][0].as_py()
    assert defect.startswith("the pipeline failed: KeyError (")
    assert "test_block.py" in defect
    assert "\n" not in defect
    with pytest.raises(JobFailed, match="KeyError"):
        raise_failure(guarded(break_down, block).to_pylist()[0])
    raise_failure({"rows_ok": 1})
    assert guarded(lambda block: block, block) is block
