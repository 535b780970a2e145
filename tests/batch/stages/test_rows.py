"""Rows and results to output and errors: each row once."""

import pyarrow as pa

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.stages.rows import error_table, fail_empty, fail_rows, good_rows, output_table

COLUMNS = Columns(text={"text": "body"}, id="key", keep=("lang",))


def rows():
    return pa.table(
        {
            "_row": [4, 5, 6, 7],
            "_code": ["", "null_field", "", ""],
            "_message": ["", "line 6: null", "", ""],
            "_changed": [False, False, True, False],
            "id": ["a", "b", "c", "d"],
            "lang": ["x", "y", "z", None],
            "text": ["one", None, "", "four"],
        }
    )


def test_every_row_is_output_or_error():
    table = fail_rows(fail_empty(rows(), ["text"]), {3: ("non_finite", "NaN")})
    good = good_rows(table)
    errors = error_table(table, "file")
    result = pa.table({"score": [0.5]})
    output = output_table(table.take(good), "file", COLUMNS, [("", result)])
    assert output.to_pylist() == [
        {"source": "file", "row": 4, "id": "a", "lang": "x", "text_changed": False, "score": 0.5}
    ]
    assert [(e["row"], e["id"], e["code"]) for e in errors.to_pylist()] == [
        (5, "b", "null_field"),
        (6, "c", "empty_text"),
        (7, "d", "non_finite"),
    ]
    assert all(None not in e.values() for e in errors.to_pylist())


def test_the_first_reason_of_a_row_stays_where_nothing_new_fails():
    table = fail_rows(rows(), {})
    assert table.equals(rows())
    assert error_table(table, "f")["message"].to_pylist() == ["line 6: null"]


def test_names_of_several_tasks():
    one = rows().take([0])
    output = output_table(one, "f", COLUMNS, [("a_", pa.table({"x": [1]})), ("b_", pa.table({"x": [2]}))])
    assert output.column_names[-2:] == ["a_x", "b_x"]
