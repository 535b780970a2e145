"""Files that other tools write, with the defaults that they have, come back row for row."""

import datetime
import decimal
import json
import shutil

import duckdb
import pandas
import polars
import pyarrow as pa
import pytest

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.kept_types import KeptTypes
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.source import find_inputs

TEXTS = ["plain", "", 'a "quoted", one', "two\nlines", "tab\tand back\\slash", "Straße 東京 👩‍👩‍👧", " spaces "]
ROWS = [
    {
        "id": number,
        "text": text,
        "kind": ["x", None, "y"][number % 3],
        "number": [None, number, -number][number % 3],
        "real": [0.1, None, 1e300][number % 3],
        "flag": [True, False, None][number % 3],
        "day": [datetime.date(2024, 2, 29), None, datetime.date(1969, 12, 31)][number % 3],
        "when": [datetime.datetime(2024, 1, 1, 1, 2, 3, 456789), datetime.datetime(1900, 1, 1), None][number % 3],
        "words": [["a", "b"], [], None][number % 3],
        "price": [decimal.Decimal("1.50"), None, decimal.Decimal("-99.25")][number % 3],
    }
    for number, text in enumerate(TEXTS * 5)
]
TYPES = {
    "id": pa.int64(), "text": pa.string(), "kind": pa.string(), "number": pa.int32(), "real": pa.float64(),
    "flag": pa.bool_(), "day": pa.date32(), "when": pa.timestamp("us"), "words": pa.list_(pa.string()),
    "price": pa.decimal128(10, 2),
}  # fmt: skip
TABLE = pa.Table.from_pylist(ROWS, schema=pa.schema(TYPES))
KEPT = tuple(name for name in TYPES if name not in ("id", "text"))


def read(folder, keep=KEPT):
    """By id, what is read of a folder."""
    columns = Columns({"text": "text"}, id="id", keep=keep)
    kept = KeptTypes(columns.extra)
    pieces = list(plan_shards(find_inputs(str(folder)).inputs, shard_rows=7, columns=columns, kept=kept))
    assert not [piece for piece in pieces if isinstance(piece, DeadLetter)]
    rows = {}
    for shard in pieces:
        for row in read_shard(shard, columns, kept=kept.schema()).to_pylist():
            assert row["_code"] == "", row
            assert row["id"] not in rows
            rows[row["id"]] = {name: row[name] for name in ("text", *keep)}
    return rows


def wanted(*names):
    return {str(row["id"]): {name: row[name] for name in names or ("text", *KEPT)} for row in ROWS}


def test_polars(tmp_path):
    frame = polars.from_arrow(TABLE).with_columns(polars.col("kind").cast(polars.Categorical))
    for codec in ("zstd", "snappy", "lz4", "gzip", "brotli", "uncompressed"):
        folder = tmp_path / codec
        folder.mkdir()
        frame.write_parquet(folder / "a.parquet", compression=codec, row_group_size=9)
        assert read(folder) == wanted()
    (tmp_path / "lines").mkdir()
    frame.select("id", "text", "kind").write_ndjson(tmp_path / "lines" / "a.ndjson")
    assert read(tmp_path / "lines", ("kind",)) == wanted("text", "kind")
    (tmp_path / "csv").mkdir()
    frame.select("id", "text").write_csv(tmp_path / "csv" / "a.csv")
    assert read(tmp_path / "csv", ()) == wanted("text")


def test_polars_partitions(tmp_path):
    frame = polars.from_arrow(TABLE)
    for (kind,), part in frame.group_by("kind"):
        folder = tmp_path / f"kind={kind or '__HIVE_DEFAULT_PARTITION__'}"
        folder.mkdir()
        part.drop("kind").write_parquet(folder / "0.parquet")
    assert read(tmp_path) == wanted()


def test_duckdb(tmp_path):
    con = duckdb.connect()
    con.register("t", TABLE)
    (tmp_path / "one").mkdir()
    con.sql(f"copy t to '{tmp_path}/one/a.parquet' (row_group_size 2048, compression zstd)")
    assert read(tmp_path / "one") == wanted()
    con.sql(f"copy t to '{tmp_path}/parts' (format parquet, partition_by (kind))")
    assert read(tmp_path / "parts") == wanted()
    for name, options in {"a.csv": "", "a.csv.gz": "", "a.csv.zst": ", compression zstd"}.items():
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        con.sql(f"copy (select id, text from t) to '{folder}/{name}' (format csv, header{options})")
        assert read(folder, ()) == wanted("text")
    for name in ("a.json", "a.json.gz"):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        con.sql(f"copy (select id, text, kind from t) to '{folder}/{name}' (format json)")
        assert read(folder, ("kind",)) == wanted("text", "kind")


def test_pandas(tmp_path):
    frame = TABLE.to_pandas(types_mapper=pandas.ArrowDtype)
    for name, codec in {"a.parquet": "snappy", "a.parquet.gzip": "gzip", "a.parquet.zst": "zstd"}.items():
        folder = tmp_path / name
        folder.mkdir()
        frame.to_parquet(folder / name, compression=codec)
        assert read(folder) == wanted()
    frame.to_parquet(tmp_path / "parts", partition_cols=["kind"])
    assert read(tmp_path / "parts") == wanted()
    for name in ("a.jsonl", "a.jsonl.gz"):
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        frame[["id", "text", "kind"]].to_json(folder / name, orient="records", lines=True)
        assert read(folder, ("kind",)) == wanted("text", "kind")
    (tmp_path / "csv").mkdir()
    frame[["id", "text"]].to_csv(tmp_path / "csv" / "a.csv.gz")  # with the index as a column without a name
    assert read(tmp_path / "csv", ()) == wanted("text")


def test_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset(TABLE)
    (tmp_path / "one").mkdir()
    whole.to_parquet(tmp_path / "one" / "a.parquet")
    assert read(tmp_path / "one") == wanted()
    (tmp_path / "json").mkdir()
    whole.select_columns(["id", "text", "kind"]).to_json(tmp_path / "json" / "a.jsonl.gz", compression="gzip")
    assert read(tmp_path / "json", ("kind",)) == wanted("text", "kind")
    (tmp_path / "csv").mkdir()
    whole.select_columns(["id", "text"]).to_csv(tmp_path / "csv" / "a.csv")
    assert read(tmp_path / "csv", ()) == wanted("text")


@pytest.mark.timeout(600)
def test_spark(tmp_path):
    sql = pytest.importorskip("pyspark.sql")
    if shutil.which("java") is None:
        pytest.skip("no Java here")
    session = (
        sql.SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.parquet.outputTimestampType", "INT96")
        .config("spark.sql.parquet.int96RebaseModeInWrite", "CORRECTED")
        .getOrCreate()
    )
    try:
        types = "id long, text string, kind string, number int, real double, flag boolean, day date, when timestamp_ntz"
        schema = types.replace("timestamp_ntz", "timestamp") + ", words array<string>, price decimal(10,2)"
        utc = [{**row, "when": row["when"] and row["when"].replace(tzinfo=datetime.UTC)} for row in ROWS]
        frame = session.createDataFrame([tuple(row.values()) for row in utc], schema).repartition(3)
        frame.write.parquet(str(tmp_path / "one"))
        assert read(tmp_path / "one") == wanted()
        frame.write.partitionBy("kind").parquet(str(tmp_path / "parts"))
        assert read(tmp_path / "parts") == wanted()
        for codec in ("none", "gzip"):
            frame.select("id", "text", "kind").write.option("compression", codec).json(str(tmp_path / codec))
            got = read(tmp_path / codec, ("kind",))
            assert got == wanted("text", "kind")
        session.stop()
    finally:
        session.stop()


def test_what_json_keeps_is_json(tmp_path):
    duckdb.connect().sql(f"copy (select 1 as id, 'a' as text, [1, 2] as kind) to '{tmp_path}/a.json'")
    assert json.loads(read(tmp_path, ("kind",))["1"]["kind"]) == [1, 2]
