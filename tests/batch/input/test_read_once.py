"""Neighbouring shards that are read from one source: the same rows as each by itself, and nothing is read twice."""

import gzip
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.local import LocalFileSystem

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import parquet, raw
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.stages.packs import ends, packed, unpacked

COLUMNS = Columns({"text": "text"}, id="id", keep=("lang",))
ROWS = 3000


@pytest.fixture
def store(monkeypatch):
    """What is asked of the file system: bytes, and requests by kind."""
    asked = Counter()
    cat_file, info = LocalFileSystem.cat_file, LocalFileSystem.info

    def cat(self, path, **range_):
        data = cat_file(self, path, **range_)
        asked["bytes"] += len(data)
        asked["GET"] += 1
        return data

    def head(self, path, **more):
        asked["HEAD"] += 1
        return info(self, path, **more)

    monkeypatch.setattr(LocalFileSystem, "cat_file", cat)
    monkeypatch.setattr(LocalFileSystem, "info", head)
    return asked


def corpus(folder, kind, rows=ROWS):
    """A file of a kind with rows of which some are bad. Gives its path."""
    texts = ["" if at % 97 == 5 else f"{at} " + random.Random(at).randbytes(60).hex() for at in range(rows)]
    path = folder / f"a.{kind}"
    table = pa.table({"id": [f"r{at}" for at in range(rows)], "lang": ["de", "fr"] * (rows // 2), "text": texts})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=rows // 2, data_page_size=4096, use_dictionary=False)
        return path
    if kind.startswith("csv"):
        lines = ["id,lang,text", *(f"{row['id']},{row['lang']},{row['text']}" for row in table.to_pylist())]
    else:
        lines = ["" if at % 50 == 7 else json.dumps(row) for at, row in enumerate(table.to_pylist())]
        lines[20] = "{"
    data = "".join(f"{line}\n" for line in lines).encode()
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(kind.rpartition(".")[2], bytes)
    path.write_bytes(pack(data))
    return path


def planned(path, rows=16):
    return list(plan_shards(find_inputs(str(path)).inputs, shard_rows=rows, columns=COLUMNS))


def read_on(shards):
    """As a tokenizer reads a pack."""
    source, tables = None, []
    for shard, until in zip(shards, ends(shards), strict=True):
        if source is None or source.input != shard.input:
            source = Source(shard.input)
        source.until = until
        tables.append(read_shard(shard, COLUMNS, source=source))
    return tables


KINDS = ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_read_on_is_as_read_by_itself(tmp_path, store, kind):
    path = corpus(tmp_path, kind)
    shards = planned(path)
    alone = [read_shard(shard, COLUMNS) for shard in shards]
    for some in (range(len(shards)), range(3, len(shards), 5), [0, 1, 2, 100, 101, 102, 7, 8]):
        store.clear()
        for at, table in zip(some, read_on([shards[at] for at in some]), strict=True):
            assert table.equals(alone[at])
    store.clear()
    read_on(shards)
    assert store["bytes"] <= 1.1 * path.stat().st_size
    assert store["GET"] + store["HEAD"] <= 8


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_part_reads_no_more_than_it_needs(tmp_path, store, monkeypatch, kind):
    monkeypatch.setattr(raw, "CHUNK", 8192)
    shards = planned(corpus(tmp_path, kind))
    store.clear()
    read_on(shards[2:4])
    assert store["bytes"] == shards[3].stop - shards[2].start


def test_large_row_groups_are_not_held(tmp_path, store, monkeypatch):
    path = corpus(tmp_path, "parquet")
    shards = planned(path)
    wanted = [read_shard(shard, COLUMNS) for shard in shards]
    monkeypatch.setattr(parquet, "MAX_AHEAD", 1000)
    monkeypatch.setattr(parquet, "CHUNK", 8192)
    store.clear()
    tables = read_on(shards)
    assert all(table.equals(other) for table, other in zip(tables, wanted, strict=True))
    assert store["bytes"] <= 1.3 * path.stat().st_size + (64 << 10)  # and the footer's tail
    assert store["bytes"] / store["GET"] < 64 << 10


def test_a_damaged_row_group_fails_from_its_damage_on(tmp_path):
    path = corpus(tmp_path, "parquet")
    file = pq.ParquetFile(path)
    chunk = file.metadata.row_group(1).column(file.schema.names.index("text"))
    data = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(data)
    shards = planned(path)
    tables = read_on(shards)
    assert all(table.equals(read_shard(shard, COLUMNS)) for table, shard in zip(tables, shards, strict=True))
    codes = [set(table["_code"].to_pylist()) for table in tables]
    assert {"unreadable_row"} in codes
    assert {""} in codes


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_an_input_that_changes_while_it_is_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(raw, "CHUNK", 4096)
    monkeypatch.setattr(parquet, "MAX_AHEAD", 1000)
    monkeypatch.setattr(parquet, "CHUNK", 4096)
    path = corpus(tmp_path, kind)
    shards = planned(path)
    source = Source(shards[0].input)
    source.until = shards[-1].stop
    first = read_shard(shards[0], COLUMNS, source=source)
    assert first.equals(read_shard(shards[0], COLUMNS))
    path.write_bytes(path.read_bytes())

    def rest():
        for shard in shards[1:]:
            read_shard(shard, COLUMNS, source=source)

    with pytest.raises(InputChanged):
        rest()


def packs_of(shards, size, most):
    return [[json.loads(text)["id"] for text in unpacked(pack)] for pack in packed(shards, size, most)]


@pytest.mark.parametrize(("kind", "units"), [("parquet", 2), ("jsonl.gz", 1), ("csv.gz", 1)])
def test_what_is_read_once_is_in_one_pack(tmp_path, kind, units):
    shards = planned(corpus(tmp_path, kind))
    assert all(isinstance(shard, Shard) for shard in shards)
    names = [shard.id for shard in shards]
    packs = packs_of(shards, 4, 10**9)
    assert len(packs) == units
    assert [name for pack in packs for name in pack] == names
    parts = packs_of(shards, 4, 20)  # where other tokenizers would have nothing to do
    assert max(map(len, parts)) == 20
    assert [name for pack in parts for name in pack] == names
    assert len(packs_of(shards[::3], 4, 10**9)) == units  # of a resumed run


def test_what_can_be_read_by_itself_is_shared_out(tmp_path):
    shards = planned(corpus(tmp_path, "jsonl"))
    assert {len(pack) for pack in packs_of(shards, 4, 10**9)[:-1]} == {4}
