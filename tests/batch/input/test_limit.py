"""The first N rows of an input are those that reading all of it gives first, whatever the format and the shards."""

import gzip
import io
import json
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.input.test_new_format import registered
from xlmr_ray import UserError
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.readers.text import PlainText
from xlmr_ray.batch.input.source import find_inputs

TEXT = Columns(text={"text": "text"})
ROWS = [{"text": f"{i} " + "word " * (7 * i % 5)} for i in range(11)]


def parquet(rows, **more):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **more)
    return sink.getvalue()


JSONL = "".join(json.dumps(row) + "\n\n" for row in ROWS)
FORMATS = {
    "a.parquet": parquet(ROWS, row_group_size=4),
    "b.parquet": parquet(ROWS),
    "c.jsonl": f"\n\n{JSONL}".encode(),
    "d.jsonl.gz": gzip.compress(JSONL.encode()),
    "e.csv": ('text\r\n\r\n"one\nand a half"\r\n' + "".join(f"{row['text']}\r\n" for row in ROWS)).encode(),
    "f.tsv": ("id\ttext\n" + "".join(f"{i}\t{row['text']}\n" for i, row in enumerate(ROWS))).encode(),
    "g.txt": "".join(f"{row['text']}\n\n" for row in ROWS).encode(),
    "h.jsonl": b'{"text": "good"}\n{"text": 5}\nnot json\n{"text": "the last, cut',
    "i.par": b"".join(b"%d\nmore\n--\n" % i for i in range(7)),
}


def read(folder, *, readers=READERS, **how):
    """Source, row, code and text of each row, in the plan's order; and the files that are named as unreadable."""
    found, dead = [], []
    for one in plan_shards(find_inputs(str(folder)).inputs, columns=TEXT, readers=readers, **how):
        if isinstance(one, DeadLetter):
            dead.append(one.key)
            continue
        rows = read_shard(one, TEXT, readers=readers)  # which checks that they are as many as planned
        assert rows.num_rows <= how["shard_rows"]
        found += [(one.input.key, *row.values()) for row in rows.select(["_row", "_code", "text"]).to_pylist()]
    return found, dead


__all__ = ["registered"]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("shard_rows", "shard_bytes", "step"), [(3, 64, 1), (1, 1, 9), (100, 1, 7), (100, 1 << 20, 5)])
def test_the_first_rows_of_every_format(tmp_path, shard_rows, shard_bytes, step):
    for name, content in FORMATS.items():
        (tmp_path / name).write_bytes(content)
    how = {"shard_rows": shard_rows, "shard_bytes": shard_bytes}
    whole, dead = read(tmp_path, **how)
    assert (len({source for source, *_ in whole}), dead) == (len(FORMATS), [])
    for limit in range(1, len(whole) + 3, step):
        assert read(tmp_path, limit=limit, **how) == (whole[:limit], []), limit


def test_what_comes_after_them_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n")
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    (tmp_path / "c.txt").write_bytes(b"three\n")
    assert read(tmp_path, shard_rows=1)[1] == [f"{tmp_path}/b.parquet"]
    assert read(tmp_path, shard_rows=1, limit=2) == (
        [(f"{tmp_path}/a.txt", i, "", t) for i, t in enumerate(("one", "two"))],
        [],
    )
    assert read(tmp_path, shard_rows=1, limit=3)[1] == [f"{tmp_path}/b.parquet"]


def test_planning_ends_with_them(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n")
    (only,) = find_inputs(str(tmp_path)).inputs
    endless = (only for _ in count())
    assert len(list(plan_shards(endless, shard_rows=1, columns=TEXT, limit=7))) == 7


def test_a_format_that_is_not_cut_after_any_row(tmp_path):
    class Whole(PlainText):
        def plan(self, source, columns, *, shard_rows, shard_bytes):
            return super().plan(source, columns, shard_rows=100, shard_bytes=1 << 20)

    (tmp_path / "a.txt").write_bytes(FORMATS["g.txt"])
    readers = {**READERS, "text": Whole()}
    assert len(read(tmp_path, shard_rows=100, readers=readers)[0]) == 22
    with pytest.raises(UserError, match=r"input\.limit: .*a\.txt: files of format text are not cut after any row"):
        read(tmp_path, shard_rows=100, readers=readers, limit=3)
