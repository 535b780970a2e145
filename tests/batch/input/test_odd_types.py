"""Types of Parquet that other tools write: read as they are, or said to be what they are."""

import datetime
import uuid

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import footer
from xlmr_ray.batch.input.source import find_inputs


def read(tmp_path, columns):
    (shard,) = plan_shards(find_inputs(str(tmp_path)).inputs, shard_rows=10**6, columns=columns)
    table = read_shard(shard, columns)
    table.validate(full=True)
    return table


KEPT = Columns({"text": "text"}, keep=("kept",))


def kept(tmp_path, column, **options):
    pq.write_table(pa.table({"text": ["a"] * len(column), "kept": column}), tmp_path / "a.parquet", **options)
    return read(tmp_path, KEPT)


DATES = [datetime.datetime(9999, 12, 31, 23, 59, 59, 999999), datetime.datetime(1, 1, 1), None, datetime.datetime.max]


def test_int96_dates_of_all_years(tmp_path):
    column = pa.array(DATES * 1000, pa.timestamp("us"))
    table = kept(tmp_path, column, use_deprecated_int96_timestamps=True, row_group_size=1500)
    assert pq.ParquetFile(tmp_path / "a.parquet").schema.column(1).physical_type == "INT96"
    assert table["kept"].to_pylist() == DATES * 1000
    assert set(table["_code"].to_pylist()) == {""}


def test_int96_times_finer_than_microseconds_are_error_rows(tmp_path):
    column = pa.array([1_577_836_800_000_000_000, 1_577_836_800_000_000_001, None, -1, -1000], pa.timestamp("ns"))
    table = kept(tmp_path, column, use_deprecated_int96_timestamps=True)
    assert table["_code"].to_pylist() == ["", codes.UNFIT_VALUE, "", codes.UNFIT_VALUE, ""]
    assert table["kept"].to_pylist()[4] == datetime.datetime(1969, 12, 31, 23, 59, 59, 999999)


@pytest.mark.parametrize(
    "type",
    [
        pa.struct([("n", pa.float64()), ("at", pa.timestamp("ns"))]),
        pa.list_(pa.timestamp("ns")),
        pa.map_(pa.string(), pa.timestamp("ns")),
        pa.list_(pa.struct([("at", pa.list_(pa.timestamp("ns")))])),
    ],
    ids=str,
)
def test_int96_times_in_other_types_are_no_less_checked(tmp_path, type):
    def around(time):
        if pa.types.is_struct(type):
            return {"n": float("nan"), "at": time}
        if pa.types.is_map(type):
            return [("first", 0), ("second", time)]
        return [0, time] if pa.types.is_timestamp(type.value_type) else [{"at": []}, {"at": [0, time]}, None]

    rows = [around(1000), around(1001), None, around(None), around(-1)]
    table = kept(tmp_path, pa.array(rows, type), use_deprecated_int96_timestamps=True, row_group_size=2)
    assert table["_code"].to_pylist() == ["", codes.UNFIT_VALUE, "", "", codes.UNFIT_VALUE]
    sound = table["kept"].take([0, 2, 3])
    exact = pq.read_table(tmp_path / "a.parquet", columns=["kept"], coerce_int96_timestamp_unit="us")["kept"]
    assert str(sound) == str(exact.take([0, 2, 3]))  # NaN is not equal to itself


def test_a_uuid_is_an_id(tmp_path):
    path = tmp_path / "a.parquet"
    duckdb.sql(f"copy (select uuid() as id, 'a' as text from range(5) union all select null, 'b') to '{path}'")
    wanted = [row[0] for row in duckdb.sql(f"select coalesce(id::varchar, '') from '{path}'").fetchall()]
    assert read(tmp_path, Columns({"text": "text"}, id="id"))["id"].to_pylist() == wanted
    assert str(uuid.UUID(wanted[0])) == wanted[0]


@pytest.mark.parametrize("column", ["text", "id"])
def test_bytes_that_are_no_uuid_are_no_id(tmp_path, column):
    sixteen = pa.array([b"0" * 16], pa.binary(16))
    pq.write_table(pa.table({"text": ["a"], "id": ["b"]} | {column: sixteen}), tmp_path / "a.parquet")
    (dead,) = plan_shards(find_inputs(str(tmp_path)).inputs, shard_rows=9, columns=Columns({"text": "text"}, id="id"))
    assert dead.code == codes.WRONG_COLUMN_TYPE


def test_a_type_that_this_arrow_has_not_is_no_matter_where_nobody_reads_it(tmp_path):
    """As polars writes Int128: the Arrow schema in the footer cannot be read, Parquet's own can."""
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"text": ["a", "b"], "big": polars.Series([1, 2**100], dtype=polars.Int128), "n": [1, 2]})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.read_schema(tmp_path / "a.parquet")
    table = read(tmp_path, Columns({"text": "text"}, keep=("n",)))
    assert (table["text"].to_pylist(), table["n"].to_pylist()) == (["a", "b"], [1, 2])


def test_a_schema_that_cannot_be_read_is_hidden(tmp_path, monkeypatch):
    kept(tmp_path, pa.array([1, 2]))

    def unreadable(data):
        raise footer.BadFile(codes.CORRUPT_FOOTER, "no")
        yield

    monkeypatch.setattr(footer, "extension_names", unreadable)
    assert read(tmp_path, KEPT)["kept"].to_pylist() == [1, 2]


VIEWS = pa.array([["a", None], None, ["é"]], pa.list_(pa.string_view()))
STRUCTS = pa.array(
    [{"v": "a", "d": datetime.timedelta(1)}, None], pa.struct({"v": pa.string_view(), "d": pa.duration("us")})
)
DICTIONARIES = pa.StructArray.from_arrays([pa.array(["x", "y", "x"]).dictionary_encode()], ["d"])


@pytest.mark.parametrize(
    ("column", "type"),
    [
        (VIEWS, pa.list_(pa.string())),
        (STRUCTS, pa.struct({"v": pa.string(), "d": pa.duration("us")})),
        (DICTIONARIES, pa.struct({"d": pa.string()})),
        (pa.array([b"a", None], pa.binary_view()), pa.binary()),
    ],
    ids=["views", "struct of a view", "struct of a dictionary", "bytes"],
)
def test_views_and_dictionaries_come_as_what_they_hold(tmp_path, column, type):
    table = kept(tmp_path, column)
    assert table.schema.field("kept").type == type
    assert table["kept"].to_pylist() == column.to_pylist()


def test_a_dictionary_beside_them_leaves_other_types_as_they_are(tmp_path):
    """Arrow's own types are in the schema that is hidden for the dictionary."""
    when = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    columns = {
        "duration": pa.array([datetime.timedelta(1), None], pa.duration("us")),
        "zone": pa.array([when, None], pa.timestamp("us", "Europe/Berlin")),
        "fixed": pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
        "large": pa.array([["a"], None], pa.large_list(pa.large_string())),
        "seconds": pa.array([when, None], pa.timestamp("ms", "UTC")),
    }
    text = pa.array(["x", "x"]).dictionary_encode()
    pq.write_table(pa.table({"text": text, **columns}), tmp_path / "a.parquet")
    table = read(tmp_path, Columns({"text": "text"}, keep=tuple(columns)))
    for name, column in columns.items():
        assert table.schema.field(name).type == column.type
        assert table[name].to_pylist() == column.to_pylist()
