"""Kept columns of several types: widened where that changes no value, else named before anything is scored."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.direct import job_of, rows_of, run_directly
from tests.models import save_classifier
from xlmr_ray import UserError
from xlmr_ray.batch import codes
from xlmr_ray.batch.input.kept_types import KeptTypes, as_planned, schema_from_text, schema_to_text, wider
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.store.open import open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


def write(tmp_path, columns):
    (tmp_path / "in").mkdir(exist_ok=True)
    for number, column in enumerate(columns):
        texts = [f"text {n}" for n in range(len(column))]
        pq.write_table(pa.table({"text": texts, "kept": column}), tmp_path / "in" / f"{number}.parquet")
    return tmp_path / "in"


DICTIONARY = pa.array(["a", None, "b"]).dictionary_encode()
TOGETHER = [
    ([pa.array([1], pa.int64()), pa.array([2.5]), pa.array([3], pa.int32())], pa.float64()),
    ([pa.nulls(2), pa.array([{"a": 1}])], pa.struct({"a": pa.int64()})),
    ([pa.array([7]), pa.nulls(2)], pa.int64()),
    ([pa.nulls(1), pa.nulls(2)], pa.string()),
    ([pa.array([1], pa.int8()), pa.array([200], pa.uint8())], pa.int16()),
    ([DICTIONARY, pa.array(["c"]), pa.array(["d"], pa.string_view()), pa.array(["e"], pa.large_string())], pa.string()),
    ([pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("us"))], pa.timestamp("us")),
    ([pa.array([[1]], pa.list_(pa.int32())), pa.array([[2**40]])], pa.list_(pa.int64())),
    ([pa.array([{"a": 1}]), pa.array([{"a": 2, "b": "x"}])], pa.struct({"a": pa.int64(), "b": pa.string()})),
]


@pytest.mark.parametrize(
    ("columns", "type"), TOGETHER, ids=lambda value: str(value) if not isinstance(value, list) else ""
)
def test_compatible_types_are_one_column(model, tmp_path, columns, type):
    job = job_of(model, write(tmp_path, columns), tmp_path / "out", keep=["kept"], max_fraction=0)
    run_directly(job)
    assert verify(open_store(str(tmp_path / "out"))).ok
    rows = sorted(rows_of(tmp_path / "out"), key=lambda row: (row["source"], row["row"]))
    fields = dict.fromkeys(("a", "b")) if pa.types.is_struct(type) and type.num_fields == 2 else {}
    assert [row["kept"] for row in rows] == [
        {**fields, **value} if fields and value else value for column in columns for value in column.to_pylist()
    ]
    plan = prepare_run(job, open_store(str(tmp_path / "out"))).plan
    if plan.kept is not None:
        assert plan.kept.field("kept").type == type


def test_an_integer_that_a_double_cannot_hold_is_an_error_row(model, tmp_path):
    folder = write(tmp_path, [pa.array([1, 2**53 + 1, None]), pa.array([0.5])])
    run_directly(job_of(model, folder, tmp_path / "out", keep="kept"))
    assert sorted(row["kept"] or 0 for row in rows_of(tmp_path / "out")) == [0, 0.5, 1]
    (error,) = rows_of(tmp_path / "out", errors=True)
    assert (error["row"], error["code"]) == (1, codes.UNFIT_VALUE)
    assert error["message"] == "row 1: field 'kept' does not fit double, its type in the output"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ([pa.array([1]), pa.array(["1"])], "int64 in .*0.parquet and string in .*1.parquet"),
        ([pa.nulls(1), pa.array([1]), pa.array([True])], "int64 in .*1.parquet and bool in .*2.parquet"),
        (
            [pa.array([1.5]), pa.array([1]).cast(pa.decimal128(19, 0))],
            r"double in .*0.parquet and decimal128\(19, 0\) in .*1.parquet",
        ),
        ([pa.array([{"a": 1}]), pa.array([{"a": "1"}])], "struct.* in .*0.parquet and struct.* in .*1.parquet"),
    ],
)
def test_incompatible_types_are_named_with_both_files(model, tmp_path, columns, told):
    job = job_of(model, write(tmp_path, columns), tmp_path / "out", keep="kept")
    with pytest.raises(UserError, match=f"^input.keep: column 'kept' is {told}, which do not go into one column"):
        prepare_run(job, open_store(str(tmp_path / "out")))
    assert not (tmp_path / "out" / "_runs").exists()


def test_what_is_added_to_a_table_fits_it_or_is_refused():
    known = KeptTypes(["kept"], settled=True, fields={"kept": (pa.int64(), "table")})
    known.add("narrow", [pa.int32()])
    known.add("nothing", [pa.null()])
    assert known.schema() == pa.schema({"kept": pa.int64()})
    with pytest.raises(UserError, match="int64 in table and double in wide"):
        known.add("wide", [pa.float64()])


def test_a_schema_of_any_type_survives_the_plan():
    schema = pa.schema([("a", pa.timestamp("us", "Europe/Berlin")), ("b", pa.struct({"c": pa.decimal128(10, 2)}))])
    assert schema_from_text(schema_to_text(schema)) == schema
    for text in ("", "not base64", "AAAA"):
        with pytest.raises(ValueError, match=r"."):
            schema_from_text(text)


def test_no_type_is_wider_than_both_of_two_that_differ():
    assert wider(pa.bool_(), pa.int64()) is None
    assert wider(pa.list_(pa.decimal128(5, 2)), pa.list_(pa.float64())) is None


def test_an_error_row_stays_what_it_is():
    rows = pa.table({"_row": [4], "_code": ["null_field"], "_message": ["row 4: …"], "kept": [2**53 + 1]})
    done = as_planned(rows, pa.schema({"kept": pa.float64()}), ["kept"])
    assert (done["_code"].to_pylist(), done["kept"].to_pylist()) == (["null_field"], [None])
