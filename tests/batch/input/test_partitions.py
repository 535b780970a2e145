"""Hive partitions of inputs are columns; nested fields and names with dots are found; DuckDB is the measure."""

import gzip
import json

import duckdb
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.partitions import partitions_of
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.store.filesystem import filesystem


def read(path, columns, options=None):
    found = []
    inputs = find_inputs(str(path), options=options).inputs
    for piece in plan_shards(inputs, shard_rows=10, columns=columns, options=options):
        assert not isinstance(piece, DeadLetter), piece
        found += read_shard(piece, columns, options=options).to_pylist()
    return found


def write(folder, ending, table):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-0.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    elif ending.startswith("jsonl"):
        data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    elif ending == "csv":
        pc.write_csv(table, path)
    else:
        path.write_text("".join(f"{text}\n" for text in table["text"].to_pylist()))


FOLDERS = ["lang=de/year=2024", "lang=en%20GB/year=007", "lang=__HIVE_DEFAULT_PARTITION__/year=2024"]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "jsonl.gz", "csv", "txt"])
def test_they_can_be_kept_and_be_the_id(tmp_path, ending):
    for number, folder in enumerate(FOLDERS):
        write(tmp_path / "in" / folder, ending, pa.table({"text": [f"{number}", "b"]}))
    columns = Columns({"text": "text"}, id="lang", keep=("lang", "when"), renamed=(("when", "year"),))
    rows = read(tmp_path / "in", columns)
    got = sorted(
        (row["text"], row["id"], row["lang"], row["when"]) for row in rows if row["text"] != "b" and row["lang"]
    )
    assert got == [("0", "de", "de", "2024"), ("1", "en GB", "en GB", "007")]
    assert [(row["id"], row["lang"]) for row in rows if row["text"] == "2"] == [("", None)]
    if ending == "parquet":
        files = f"'{tmp_path}/in/**/*.parquet', hive_partitioning=true, hive_types_autocast=false"
        wanted = duckdb.sql(f"select text, lang, year from read_parquet({files})").fetchall()
        assert sorted(map(str, wanted)) == sorted(str((row["text"], row["lang"], row["when"])) for row in rows)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv", "txt"])
def test_a_missing_value_is_no_text(tmp_path, ending):
    for folder in ("lang=de", "lang=__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / folder, ending, pa.table({"text": ["a", "b"]}))
    columns = Columns({"text": "text", "text_pair": "lang"}, keep=("year",), renamed=(("year", "lang"),))
    rows = read(tmp_path, columns)
    assert [row["_code"] for row in rows] == [codes.NULL_FIELD] * 2 + [""] * 2
    assert [row["text_pair"] for row in rows] == [None, None, "de", "de"]
    assert "'lang' is null" in rows[0]["_message"]


def test_a_column_of_the_file_comes_first(tmp_path):
    write(tmp_path / "lang=de", "parquet", pa.table({"text": ["a"], "lang": ["fr"]}))
    write(tmp_path / "lang=de", "jsonl", pa.table({"text": ["a", "b"], "lang": ["fr", None]}))
    write(tmp_path / "lang=de", "csv", pa.table({"text": ["a"], "lang": ["fr"]}))
    (tmp_path / "lang=de" / "more.jsonl").write_text('{"text": "c"}')
    rows = read(tmp_path, Columns({"text": "text"}, keep=("lang",)))
    assert [(row["text"], row["lang"]) for row in rows] == [
        ("c", "de"),
        ("a", "fr"),
        ("a", "fr"),
        ("b", None),
        ("a", "fr"),
    ]


def test_in_a_bucket(seaweed):
    folder = seaweed.new_folder()
    fs, where = filesystem(folder, options=seaweed.options)
    for lang in ("de", "fr"):
        fs.pipe_file(f"{where}/lang={lang}/a.jsonl", b'{"text": "a"}')
    rows = read(folder, Columns({"text": "text"}, keep=("lang",)), seaweed.options)
    assert [row["lang"] for row in rows] == ["de", "fr"]


def test_what_a_path_names():
    assert partitions_of("s3://b/lang=de/y=1/lang=fr/a=b.parquet") == {"lang": "fr", "y": "1"}
    assert partitions_of("/a/=x/b=/c%3Dd=e%2Ff/x") == {"b": "", "c=d": "e/f"}


NESTED = {"meta": {"text": "nested", "a.b": {"c": "deep"}, "n": 7}, "meta.lang": "literal", "x": {"lang": "no"}}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_fields_of_structs_can_be_named(tmp_path, ending):
    table = pa.Table.from_pylist([NESTED, {"meta": {"text": None, "n": 8}, "meta.lang": "l"}, {"meta": None}])
    write(tmp_path, ending, table)
    columns = Columns({"text": "meta.text"}, id="meta.n", keep=("meta.lang", "deep"), renamed=(("deep", "meta.a.b.c"),))
    rows = read(tmp_path, columns)
    assert [(row["text"], row["id"], row["meta.lang"], row["deep"]) for row in rows] == [
        ("nested", "7", "literal", "deep"),
        (None, "8", "l", None),
        (None, "", None, None),
    ]
    assert [row["_code"] for row in rows] == ["", codes.NULL_FIELD, codes.NULL_FIELD]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_name_with_a_dot_is_a_column_before_it_is_a_path(tmp_path, ending):
    write(tmp_path, ending, pa.table({"a": [{"b": "nested"}], "a.b": ["literal"]}))
    (row,) = read(tmp_path, Columns({"text": "a.b"}, keep=("a",)))
    assert row["text"] == "literal"
    assert row["a"] in ({"b": "nested"}, '{"b":"nested"}')


def test_shards_are_bounded_by_the_bytes_of_a_column_with_a_dot(tmp_path):
    texts = [f"{number:05}" * 200 for number in range(1000)]
    table = pa.table({"a": [{"b": "x"}] * 1000, "a.b": texts, "c": [{"d.e": text} for text in texts]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100, use_dictionary=False)
    inputs = find_inputs(str(tmp_path)).inputs
    for name in ("a.b", "c.d.e"):
        shards = list(plan_shards(inputs, shard_rows=1000, columns=Columns({"text": name}), shard_bytes=250_000))
        assert [shard.rows for shard in shards] == [200] * 5


def test_a_name_that_is_nowhere(tmp_path):
    write(tmp_path, "parquet", pa.table({"text": ["a"], "s": [{"t": "x"}], "l": [[{"t": "x"}]]}))
    inputs = find_inputs(str(tmp_path)).inputs
    for name in ("s.u", "l.t", "text.t", "s.", "."):
        (dead,) = plan_shards(inputs, shard_rows=9, columns=Columns({"text": name}))
        assert (dead.code, dead.rows) == (codes.MISSING_COLUMN, 1)
