"""Every row of a file comes back once, in its place, however the file is cut; bad ones with their code."""

import csv as stdlib_csv
import gzip
import io
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import dialect, parquet, parquet_rows, raw
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.store.filesystem import filesystem
from xlmr_ray.errors import UserError

TEXT = Columns({"text": "text"})
FULL = Columns({"text": "text", "text_pair": "other"}, id="id", keep=("lang",))
Row = dict[str, object]


def plan(
    path: Path, columns: Columns = TEXT, *, shard_rows: int = 10_000, **options: int
) -> tuple[list[Shard], list[DeadLetter]]:
    planned = list(
        plan_shards(find_inputs(str(path)).inputs, shard_rows=shard_rows, columns=columns, workers=2, **options)
    )
    return [one for one in planned if isinstance(one, Shard)], [one for one in planned if isinstance(one, DeadLetter)]


def read(
    path: Path, columns: Columns = TEXT, *, shard_rows: int = 10_000, max_row_bytes: int = raw.MAX_ROW_BYTES
) -> list[Row]:
    found, dead = plan(path, columns, shard_rows=shard_rows)
    assert not dead
    return rows_of(found, columns, max_row_bytes)


def rows_of(found: list[Shard], columns: Columns, max_row_bytes: int = raw.MAX_ROW_BYTES) -> list[Row]:
    rows: list[Row] = []
    for shard in found:
        table = read_shard(shard, columns, max_row_bytes=max_row_bytes)
        table.validate(full=True)
        assert table.num_rows == shard.rows
        assert table.column_names == ["_row", "_code", "_message", "_changed", "id", *columns.extra, *columns.text]
        rows += table.to_pylist()
    return rows


# ---- the catalogue, as files

JSONL: list[tuple[bytes, str, str]] = [  # line, code, text or a part of the message
    (b'{"text": "good", "other": "o", "id": 7, "lang": "en"}', "", "good"),
    (b'{"text": "bad"', codes.MALFORMED_JSON, "not JSON"),
    (b"not json", codes.MALFORMED_JSON, "not JSON"),
    (b'{"text": "a", "other": "o"} x', codes.MALFORMED_JSON, "Extra data"),
    (b'{"text": "a", "other": "o", "n": ' + b"1" * 5000 + b"}", codes.MALFORMED_JSON, "too many digits"),
    (b'"text"', codes.NOT_AN_OBJECT, "a string"),
    (b"12", codes.NOT_AN_OBJECT, "a number"),
    (b"null", codes.NOT_AN_OBJECT, "null"),
    (b'["text"]', codes.NOT_AN_OBJECT, "an array"),
    (b'{"other": "o"}', codes.MISSING_FIELD, "'text' is missing"),
    (b'{"text": null, "other": "o"}', codes.NULL_FIELD, "'text' is null"),
    (b'{"text": 1.5, "other": "o"}', codes.WRONG_TYPE, "'text' is a number"),
    (b'{"text": true, "other": "o"}', codes.WRONG_TYPE, "'text' is a boolean"),
    (b'{"text": ["a"], "other": "o"}', codes.WRONG_TYPE, "'text' is an array"),
    (b'{"text": "a"}', codes.MISSING_FIELD, "'other' is missing"),
    (b'{"text": "a", "other": null}', codes.NULL_FIELD, "'other' is null"),
    (b'{"text": "a", "other": {}}', codes.WRONG_TYPE, "'other' is an object"),
    (b'{"text": "\xff\xfe", "other": "o"}', codes.INVALID_UTF8, "byte 10"),
    (b'{"text": "\xed\xa0\x80", "other": "o"}', codes.INVALID_UTF8, "byte 10"),
    (b'{"text": "a", "other": "o", "id": [1]}', codes.WRONG_ID_TYPE, "'id' is an array"),
    (b'{"text": "a", "other": "o", "id": 1.5}', codes.WRONG_ID_TYPE, "'id' is a number"),
    (b'{"text": "a", "other": "o", "id": true}', codes.WRONG_ID_TYPE, "'id' is a boolean"),
    (b'{"text": "' + b"x" * 20_000 + b'", "other": "o"}', codes.ROW_TOO_LARGE, "limit is 20000"),
    (b'{"text": "a", "other": ' + b"[" * 5000 + b"]" * 5000 + b"}", codes.NESTING_TOO_DEEP, "100 levels"),
    (
        b'{"text": "a", "other": "o", "x": ' + b'{"y":' * 101 + b"1" + b"}" * 101 + b"}",
        codes.NESTING_TOO_DEEP,
        "100 levels",
    ),
    (b'{"text": "", "other": "o"}', "", ""),
    (b'{"text": " \\t\\u200b", "other": "o"}', "", " \t\u200b"),
    (b'{"text": "a\\ud800b", "other": "o"}', "", "a\ufffdb"),
    (b'{"text": "\\ud83d\\ude00", "other": "o"}', "", "\U0001f600"),
    (b'{"text": "\\u0000\\u0007\x01\t", "other": "o"}', "", "\0\7\1\t"),
    (b'\xef\xbb\xbf{"text": "bom", "other": "o"}', "", "bom"),
    (b'{"text": "crlf", "other": "o"}\r', "", "crlf"),
    (b'{"text": "lone \r cr",\r"other": "o"}', "", "lone \r cr"),
    ('{"text": "a\u2028b\u2029c\x85d", "other": "o"}'.encode(), "", "a\u2028b\u2029c\x85d"),
    ('{"text": "\u202eabc\u2066", "other": "o"}'.encode(), "", "\u202eabc\u2066"),
    ('{"text": "👩‍👩‍👧 🇪🇺", "other": "o"}'.encode(), "", "👩‍👩‍👧 🇪🇺"),
    (('{"text": "e' + "\u0301" * 500 + '", "other": "o"}').encode(), "", "e" + "\u0301" * 500),
    ('{"text": "é é", "other": "o"}'.encode(), "", "é é"),
    (b'{"text": "<s> </s> <mask>", "other": "o"}', "", "<s> </s> <mask>"),
    (b'{"text": "first", "text": "last", "other": "o"}', "", "last"),
    (b'{"text": "same id", "other": "o", "id": 7}', "", "same id"),
    (b'{"text": "brackets ' + b"[{" * 300 + b'", "other": "o"}', "", "brackets " + "[{" * 300),
    (b'{"text": "x' + b"y" * 9000 + b'", "other": "o"}', "", "x" + "y" * 9000),
]


@pytest.mark.parametrize("shard_rows", [1, 3, 1000])
@pytest.mark.parametrize("packing", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_bad_lines_among_good_ones(tmp_path: Path, packing: str, shard_rows: int) -> None:
    mixed = [entry for bad in JSONL for entry in (bad, (b'{"text": "between", "other": "o"}', "", "between"))]
    data = b"\n".join(line for line, _, _ in mixed) + b'\n\n  \n{"text": "the last line is cu'
    write(tmp_path / f"a.{packing}", data)
    rows = read(tmp_path, FULL, shard_rows=shard_rows, max_row_bytes=20_000)
    assert [row["_row"] for row in rows] == [*range(len(mixed)), len(mixed) + 2]  # blank lines count, and are no rows
    assert rows[-1]["_code"] == codes.TRUNCATED_LINE
    for number, ((line, code, expected), row) in enumerate(zip(mixed, rows, strict=False)):
        assert row["_code"] == code, line[:80]
        if code:
            assert expected in str(row["_message"])
            assert str(row["_message"]).startswith(f"line {number + 1}: ")
            assert row["text"] is None and row["text_pair"] is None  # noqa: PT018
        else:
            assert (row["text"], row["text_pair"], row["_message"]) == (expected, "o", "")
        assert row["_changed"] == (b"ud800" in line)
    assert (rows[0]["id"], rows[0]["lang"], rows[2]["id"], rows[2]["lang"]) == ("7", "en", "", None)


def test_messages_hold_no_document(tmp_path: Path) -> None:
    secret = b"Hunter2"
    lines = [
        b'{"text": "Hunter2" x}',
        b"Hunter2",
        b'{"text": ["Hunter2"]}',
        b'{"text": "Hunter2\xff"}',
        b'{"text": "Hunter2", "text": null}',
        b'["Hunter2"]',
        b'{"text": "Hunter2',
    ]
    write(tmp_path / "a.jsonl", b"\n".join(lines))
    for row in read(tmp_path):
        assert row["_code"]
        assert secret.decode() not in str(row)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (b'{"text": "whole"}', ""),
        (b'{"text": "cut', codes.TRUNCATED_LINE),
        (b'{"text": "cut", ', codes.TRUNCATED_LINE),
        (b'{"text": {"a": 1}', codes.TRUNCATED_LINE),
        (b'{"te', codes.TRUNCATED_LINE),
        (b"{", codes.TRUNCATED_LINE),
        (b'{"text": "cut \\', codes.TRUNCATED_LINE),
        (b'{"text": "cut \\u00', codes.TRUNCATED_LINE),
        (b'{"text": "cut", "n": tr', codes.TRUNCATED_LINE),
        (b'{"text": "cut \xe4\xb8', codes.TRUNCATED_LINE),
        (b"never json", codes.MALFORMED_JSON),
        (b'{"text": "a"} b}', codes.MALFORMED_JSON),
    ],
)
def test_the_last_line_without_a_newline(tmp_path: Path, end: bytes, code: str) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + end)
    assert [row["_code"] for row in read(tmp_path, shard_rows=1)] == ["", code]


def test_kept_fields_of_json_are_strings(tmp_path: Path) -> None:
    lines = [
        b'{"text": "a", "lang": "en"}',
        b'{"text": "a", "lang": 12}',
        b'{"text": "a", "lang": {"b": [1, "\xc3\xa9", "\\ud800"]}}',
        b'{"text": "a", "lang": null}',
        b'{"text": "a"}',
        b'{"text": 1, "lang": true}',
    ]
    write(tmp_path / "a.jsonl", b"\n".join(lines))
    rows = read(tmp_path, Columns({"text": "text"}, keep=("lang", "text")))
    assert [row["lang"] for row in rows] == ["en", "12", '{"b":[1,"é","\ufffd"]}', None, None, "true"]
    assert [row["_changed"] for row in rows] == [False, False, True, False, False, False]


def parquet_catalogue(kind: str) -> tuple[pa.Table, list[str]]:
    """The catalogue as a table, with the code of each row."""
    rows: list[tuple[bytes | None, bytes | None, bytes | None, str]] = []
    for text, other, id, code in [
        (b"good", b"o", b"1", ""),
        (None, b"o", b"2", codes.NULL_FIELD),
        (b"\xff\xfe", b"o", b"3", codes.INVALID_UTF8),
        (b"\xed\xa0\x80", b"o", b"4", codes.INVALID_UTF8),
        (b"a", None, b"5", codes.NULL_FIELD),
        (b"a", b"\xc3", b"6", codes.INVALID_UTF8),
        (b"a", b"o", b"\xff", codes.INVALID_UTF8),
        (b"x" * 20_000, b"o", b"7", codes.ROW_TOO_LARGE),
        (b"", b"o", None, ""),
        (b" \t", b"o", b"1", ""),
        (b"\0\7", b"o", b"1", ""),
        (b"\xef\xbb\xbfbom \r\n \r", b"o", b"1", ""),
        ("a\u2028b \u202e 👩‍👩‍👧 <s>".encode(), b"o", b"1", ""),
        (b"y" * 9000, b"o", b"1", ""),
    ]:
        rows += [(text, other, id, code), (b"between", b"o", b"b", "")]
    columns = [pa.array([row[index] for row in rows], pa.binary()).view(pa.string()) for index in range(3)]
    langs = pa.array([b"en", b"\xff"] + [b"de"] * (len(rows) - 2), pa.binary()).view(pa.string())
    expected = [row[3] for row in rows]
    if kind != "binary":  # a kept string is written to the output, so it has to be sound too
        expected[1] = codes.INVALID_UTF8
    return pa.table([*columns, langs], ["text", "other", "id", "lang"]), expected


KINDS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": lambda array: array,
    "large_string": lambda array: array.cast(pa.large_binary()).view(pa.large_string()),
    "binary": lambda array: array.view(pa.binary()),
    "string_view": lambda array: array.cast(pa.string_view()),
    "dictionary": lambda array: pa.DictionaryArray.from_arrays(
        pa.array(
            [None if value is None else place for place, value in enumerate(array.view(pa.binary()).to_pylist())],
            pa.int32(),
        ),
        array.fill_null(""),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_rows", [1, 5, 1000])
def test_bad_rows_in_parquet(tmp_path: Path, kind: str, shard_rows: int) -> None:
    table, expected = parquet_catalogue(kind)
    raw_texts = [table[name].combine_chunks().view(pa.binary()).to_pylist() for name in ("text", "other")]
    typed = pa.table([KINDS[kind](column.combine_chunks()) for column in table.columns], table.column_names)
    pq.write_table(typed, tmp_path / "a.parquet", row_group_size=7)
    rows = read(tmp_path, FULL, shard_rows=shard_rows, max_row_bytes=20_000)
    assert [row["_row"] for row in rows] == list(range(len(expected)))
    assert [row["_code"] for row in rows] == expected
    for number, row in enumerate(rows):
        if row["_code"]:
            assert row["text"] is None and row["text_pair"] is None  # noqa: PT018
            assert str(row["_message"]).startswith(f"row {number}: ")
        else:
            assert [str(row[role]).encode() for role in FULL.text] == [texts[number] for texts in raw_texts]
            assert row["_message"] == ""


def test_parquet_keeps_types_and_makes_integer_ids_strings(tmp_path: Path) -> None:
    when = pa.array([1, None, 3], pa.timestamp("us"))
    nested = pa.array([{"a": [1]}, None, {"a": []}])
    word = pa.array(["x", None, "x"], pa.large_string())
    ids = pa.array([2**63, None, 5], pa.uint64())
    table = pa.table(
        {"a.b": when, "nested": nested, "word": word, "key": ids, "body": ["p", "q", "r"], "unused": [1, 2, 3]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    columns = Columns({"text": "body"}, id="key", keep=("a.b", "nested", "word"))
    (shard,), _ = plan(tmp_path, columns)
    got = read_shard(shard, columns)
    assert got["id"].to_pylist() == ["9223372036854775808", "", "5"]
    assert got.schema.field("a.b").type == when.type
    assert got["nested"].to_pylist() == nested.to_pylist()
    assert (got.schema.field("word").type, got["word"].to_pylist()) == (pa.string(), ["x", None, "x"])
    assert got["text"].to_pylist() == ["p", "q", "r"]


def test_dictionary_columns_are_read_as_what_they_hold(tmp_path: Path) -> None:
    table = pa.table({name: pa.array(["x", None, "x"]).dictionary_encode() for name in ("text", "id", "lang")})
    pq.write_table(table.append_column("n", pa.array([1, 2, 1]).dictionary_encode()), tmp_path / "a.parquet")
    columns = Columns({"text": "text"}, id="id", keep=("lang", "n"))
    (shard,), _ = plan(tmp_path, columns)
    got = read_shard(shard, columns)
    assert [str(got.schema.field(name).type) for name in ("lang", "n")] == ["string", "int64"]
    assert [got[name].to_pylist() for name in ("text", "id", "lang")] == [
        ["x", None, "x"],
        ["x", "", "x"],
        ["x", None, "x"],
    ]


CHOICES = Columns({"text": "text", "choices": "answers"}, id="id", keep=("lang",))
ODD = ["", "👩‍👩‍👧", 'a "quoted", one\n', "e\u0301 人", "</s>"]
LISTS: list[tuple[object, str, object]] = [  # as JSON would hold it, code, what is read or a part of the message
    (["yes", "no"], "", ["yes", "no"]),
    (["one"], "", ["one"]),
    (
        ["", "👩‍👩‍👧", 'a "quoted", one\n', "e\u0301 人", "</s>"],
        "",
        ["", "👩‍👩‍👧", 'a "quoted", one\n', "e\u0301 人", "</s>"],
    ),
    ('["as", "JSON"]', "", ["as", "JSON"]),
    ('["lone \\ud800"]', "", ["lone \ufffd"]),
    (None, codes.NULL_FIELD, "field 'answers' is null"),
    ([], codes.WRONG_TYPE, "field 'answers' is an empty array"),
    (["a", None], codes.WRONG_TYPE, "field 'answers': item 1 is null, not a string"),
    ("secret", codes.WRONG_TYPE, "field 'answers' is a string, and not the JSON of an array of strings"),
    ("[" * 100_000, codes.WRONG_TYPE, "field 'answers' is a string, and not the JSON of an array of strings"),
    ('{"secret": 1}', codes.WRONG_TYPE, "field 'answers' is an object, not an array of strings"),
    ("12", codes.WRONG_TYPE, "field 'answers' is a number, not an array of strings"),
    ('["a", ["secret"]]', codes.WRONG_TYPE, "field 'answers': item 1 is an array, not a string"),
    ("", codes.WRONG_TYPE, "field 'answers' is a string, and not the JSON of an array of strings"),
]


def write_lists(path: Path, kind: str) -> list[tuple[object, str, object]]:
    """The catalogue in a file, as far as its kind can hold it; it is returned that far."""
    if kind in ("jsonl", "csv"):
        entries = [one for one in LISTS if kind == "jsonl" or one[0] is not None]
    else:
        is_text = kind.endswith("of JSON")
        entries = [one for one in LISTS if isinstance(one[0], str) == is_text or one[0] is None]
    values = [value for value, _, _ in entries]
    if kind == "jsonl":
        rows = [{"text": "t", "answers": value, "id": i, "lang": "en"} for i, value in enumerate(values)]
        path.with_suffix(".jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    elif kind == "csv":
        with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
            out = stdlib_csv.writer(file)
            out.writerow(["text", "answers", "id", "lang"])
            cells = [value if isinstance(value, str) else json.dumps(value) for value in values]
            out.writerows(["t", cell, i, "en"] for i, cell in enumerate(cells))
    else:
        types = {
            "list": pa.list_(pa.string()),
            "large list": pa.large_list(pa.large_string()),
            "list of dictionary": pa.list_(pa.dictionary(pa.int32(), pa.string())),
            "string of JSON": pa.string(),
            "large string of JSON": pa.large_string(),
        }
        flat = pa.array(values, pa.list_(pa.string()) if "of JSON" not in kind else pa.string())
        column = flat.cast(types[kind]) if "dictionary" not in kind else as_dictionaries(flat)
        ids = pa.array(range(len(values)))
        table = pa.table({"text": ["t"] * len(values), "answers": column, "id": ids, "lang": ["en"] * len(values)})
        pq.write_table(table, path.with_suffix(".parquet"), row_group_size=3)
    return entries


def as_dictionaries(lists: pa.ListArray) -> pa.ListArray:
    mask = lists.is_null()
    return pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode(), mask=mask)


@pytest.mark.parametrize(
    "kind", ["jsonl", "csv", "list", "large list", "list of dictionary", "string of JSON", "large string of JSON"]
)
@pytest.mark.parametrize("shard_rows", [1, 2, 1000])
def test_lists_of_strings_are_read_as_json(tmp_path: Path, kind: str, shard_rows: int) -> None:
    entries = write_lists(tmp_path / "a", kind)
    rows = read(tmp_path, CHOICES, shard_rows=shard_rows)
    assert [row["_code"] for row in rows] == [code for _, code, _ in entries]
    for place, (row, (value, code, expected)) in enumerate(zip(rows, entries, strict=True)):
        assert (row["id"], row["lang"]) == (str(place), "en")
        assert "secret" not in str(row)
        if code:
            assert str(expected) in str(row["_message"])
            assert (row["text"], row["choices"]) == (None, None)
        else:
            assert (row["text"], json.loads(str(row["choices"]))) == ("t", expected)
            assert row["_changed"] == ("ud800" in str(value))


def test_lists_that_are_no_utf8_or_too_large(tmp_path: Path) -> None:
    flat = pa.array([b"good", b"\xff", b"x" * 300, b"y" * 300, b"also", b"good"], pa.binary()).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 4, 6], pa.int32()), flat)
    pq.write_table(pa.table({"text": ["t"] * 4, "answers": lists}), tmp_path / "a.parquet")
    rows = read(tmp_path, Columns({"text": "text", "choices": "answers"}), max_row_bytes=500)
    assert [row["_code"] for row in rows] == ["", codes.INVALID_UTF8, codes.ROW_TOO_LARGE, ""]
    assert [row["choices"] for row in rows] == ['["good"]', None, None, '["also", "good"]']
    assert "601 bytes, the limit is 500" in str(rows[2]["_message"])


def test_a_missing_list_of_a_json_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"text": "t"}')
    (row,) = read(tmp_path, Columns({"text": "text", "choices": "answers"}))
    assert (row["_code"], row["_message"]) == (codes.MISSING_FIELD, "line 1: field 'answers' is missing")


def test_a_kept_list_is_as_it_was(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["t"], "answers": [["a", "b"]]}), tmp_path / "a.parquet")
    (row,) = read(tmp_path, Columns({"text": "text", "choices": "answers"}, keep=("answers",)))
    assert (row["answers"], row["choices"]) == (["a", "b"], '["a", "b"]')


@pytest.mark.parametrize("values", [[1], [[1]], [{"a": "b"}]], ids=str)
def test_a_column_that_holds_no_lists_of_strings(tmp_path: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"text": ["t"], "answers": values}), tmp_path / "a.parquet")
    _, (dead,) = plan(tmp_path, Columns({"text": "text", "choices": "answers"}))
    assert dead.code == codes.WRONG_COLUMN_TYPE
    assert dead.message.endswith(", not a list of strings")


def test_batches_over_the_offsets_of_a_string_column_are_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [str(number) * 100 for number in range(100)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.large_string())}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_rows, "HALVE_OVER", 1000)
    (shard,), _ = plan(tmp_path)
    table = read_shard(shard, TEXT)
    assert table["text"].num_chunks > 16
    assert (table["text"].to_pylist(), table["_row"].to_pylist()) == (texts, list(range(100)))


def test_one_value_again_and_again_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_SHARD_BYTES", 3_000_000)
    pq.write_table(pa.table({"text": ["x" * 1000] * 9000}), tmp_path / "a.parquet", row_group_size=4500)
    (shard,), _ = plan(tmp_path)
    assert shard.input.size < 20_000
    table = read_shard(shard, TEXT)
    kept = 3 * parquet.BATCH_ROWS  # the first whole batches over the limit
    assert table["_row"].to_pylist() == list(range(9000))
    assert table["_code"].to_pylist() == [""] * kept + [codes.SHARD_TOO_LARGE] * (9000 - kept)
    assert "cluster.shard_rows" in table["_message"][8999].as_py()


def test_a_corrupt_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    texts = [f"document {number} " + random.Random(number).randbytes(20).hex() for number in range(90)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": texts}),
        path,
        row_group_size=30,
        compression="zstd",
        write_page_checksum=True,
        use_dictionary=False,
    )
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 8] = bytes(byte ^ 0xFF for byte in data[middle : middle + 8])
    path.write_bytes(data)
    for shard_rows in (7, 30, 60, 1000):
        rows = read(tmp_path, shard_rows=shard_rows)
        assert [row["_row"] for row in rows] == list(range(90))
        assert [row["text"] for row in rows] == [None if 30 <= number < 60 else texts[number] for number in range(90)]
        assert {row["_code"] for row in rows[30:60]} == {codes.UNREADABLE_ROW}
        assert "row group 1 cannot be read" in str(rows[30]["_message"])


# ---- whatever the content, whatever the cut

documents = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
cuts = {"shard_rows": st.integers(1, 6), "shard_bytes": st.sampled_from([1, 20, 1 << 20])}
ends = st.sampled_from(["\n", "\r\n"])
kinds = st.sampled_from(["string", "large_string", "string_view", "dictionary"])
bare_lines = documents.map(lambda text: text.replace("\n", "")).filter(lambda text: not text.endswith("\r"))
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def round_trip(
    name: str, data: bytes, texts: list[str], shard_rows: int, shard_bytes: int, columns: Columns = TEXT
) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name), data)
        found, dead = plan(Path(folder), columns, shard_rows=shard_rows, shard_bytes=shard_bytes)
        assert not dead
        assert sum(shard.rows for shard in found) == len(texts)
        assert all(shard.rows <= shard_rows for shard in found)
        assert [shard.id for shard in found] == sorted({shard.id for shard in found})
        rows = rows_of(found, columns)
    assert [row["text"] for row in rows] == texts
    assert not any(row["_code"] or row["_changed"] for row in rows)
    return rows


@quick
@given(
    texts=st.lists(documents), blank=st.lists(st.integers(0, 20)), ascii=st.booleans(), end=ends,
    packing=st.sampled_from(["jsonl", "json.gz", "ndjson.zst"]), **cuts,
)  # fmt: skip
def test_jsonl_round_trip(
    texts: list[str], blank: list[int], ascii: bool, end: str, packing: str, shard_rows: int, shard_bytes: int
) -> None:
    lines = [json.dumps({"text": text, "n": number}, ensure_ascii=ascii) for number, text in enumerate(texts)]
    for place in blank:
        lines.insert(min(place, len(lines)), " " * (place % 3))
    where = [number for number, line in enumerate(lines) if line.strip()]
    data = (end.join(lines) + end * (len(texts) % 2)).encode() or b"\n"
    rows = round_trip(f"a.{packing}", data, texts, shard_rows, shard_bytes)
    assert [row["_row"] for row in rows] == where


@quick
@given(rows=st.lists(st.tuples(documents, documents)), format=st.sampled_from(["csv", "tsv.gz", "csv.zst"]),
       end=ends, quoting=st.sampled_from([0, 1]), **cuts)  # fmt: skip
@example(
    rows=[('a\n"b",\r\n', "c"), ("", "\n\n"), ("x", '"')],
    format="csv",
    end="\r\n",
    quoting=0,
    shard_rows=1,
    shard_bytes=1,
)
def test_csv_round_trip(
    rows: list[tuple[str, str]], format: str, end: str, quoting: int, shard_rows: int, shard_bytes: int
) -> None:
    # Before Python 3.13 the module writes a CR without quotes, so that one at the end of a line is a CRLF.
    assume(quoting or end != "\n" or not any(id.endswith("\r") for _, id in rows))
    file = io.StringIO()
    writer = stdlib_csv.writer(
        file,
        delimiter="\t" if "tsv" in format else ",",
        lineterminator=end,
        quoting=[stdlib_csv.QUOTE_MINIMAL, stdlib_csv.QUOTE_ALL][quoting],
    )
    writer.writerows([("text", 'the "id"'), *rows])
    columns = Columns({"text": "text"}, id='the "id"', keep=("text",))
    got = round_trip(
        f"a.{format}", file.getvalue().encode(), [text for text, _ in rows], shard_rows, shard_bytes, columns
    )
    assert [row["id"] for row in got] == [id for _, id in rows]
    assert [row["_row"] for row in got] == list(range(len(rows)))


@quick
@given(texts=st.lists(bare_lines),
       end=ends, bom=st.booleans(), packing=st.sampled_from(["txt", "txt.gz", "txt.zst"]), **cuts)  # fmt: skip
def test_text_round_trip(
    texts: list[str], end: str, bom: bool, packing: str, shard_rows: int, shard_bytes: int
) -> None:
    texts = [text.removeprefix("\ufeff") if number == 0 else text for number, text in enumerate(texts)]
    data = b"\xef\xbb\xbf" * bom + "".join(text + end for text in texts).encode()
    if data in (b"", b"\xef\xbb\xbf") or data.startswith((b"PAR1", b"PK\3\4")):
        return
    rows = round_trip(f"a.{packing}", data, texts, shard_rows, shard_bytes)
    assert [row["_row"] for row in rows] == list(range(len(texts)))


@quick
@given(texts=st.lists(documents), group=st.integers(1, 9), kind=kinds, **cuts)  # fmt: skip
def test_parquet_round_trip(texts: list[str], group: int, kind: str, shard_rows: int, shard_bytes: int) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": KINDS[kind](pa.array(texts, pa.string()))}), sink, row_group_size=group)
    rows = round_trip("a.parquet", sink.getvalue(), texts, shard_rows, shard_bytes)
    assert [row["_row"] for row in rows] == list(range(len(texts)))


@settings(max_examples=400, deadline=None)
@given(
    lines=st.lists(st.text('a",\n \\', max_size=12), max_size=6),
    piece=st.integers(1, 3),
    quote=st.sampled_from(['"', "", "'"]),
    escape=st.sampled_from(["", "\\"]),
)
def test_records_and_fields_are_those_of_the_csv_module(lines: list[str], piece: int, quote: str, escape: str) -> None:
    """Also where quotes stand in places where they should not."""
    data = ("\n".join(lines) + "\n").replace('"', quote or '"').encode()
    assume(not (quote and escape and (quote + escape).encode() in data))  # there the module takes the escape as it is
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
    own = dialect.Dialect(b",", quote.encode(), escape.encode())
    found = [record for record, _, _ in own.records(raw.lines(iter(pieces))) if record]
    got = [(fields := own.fields(record)) and [field.decode() for field in fields] for record in found]
    wanted = [
        row
        for row in stdlib_csv.reader(
            io.StringIO(data.decode(), newline=""),
            quotechar=quote or None,
            escapechar=escape or None,
            quoting=stdlib_csv.QUOTE_MINIMAL if quote else stdlib_csv.QUOTE_NONE,
        )
        if row
    ]
    assert len(got) == len(wanted)
    for record, fields, expected in zip(found, got, wanted, strict=True):
        if fields is None:  # never closed, or closed within a field: the module makes it a row all the same
            assert quote.encode() in record
            assert b"\n" in record or record is found[-1]
        else:
            assert fields == expected


@given(st.lists(st.binary(max_size=9)), st.integers(1, 7), st.booleans())
def test_lines_are_cut_at_newlines_only(wanted: list[bytes], piece: int, ended: bool) -> None:
    wanted = [line.replace(b"\n", b"\r") for line in wanted]
    data = b"\n".join(wanted) + b"\n" * ended
    got = list(raw.lines(iter([data[start : start + piece] for start in range(0, len(data), piece)])))
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line for line, _ in got] == expected
    assert sum(size for _, size in got) == len(data)


def test_csv_rows_that_do_not_fit_the_header(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b'\xef\xbb\xbftext,id\na,1\n\nb\nc,2,3\n\xff,4\n"d,5" "",6\ne,7\n"f\n,8\n')
    columns = Columns({"text": "text"}, id="id")
    found, (dead,) = plan(tmp_path, columns, shard_rows=2)
    assert (dead.code, dead.rows) == (codes.SWALLOWED_LINES, 1)
    rows = rows_of(found, columns)
    assert [(row["_row"], row["_code"], row["text"], row["id"]) for row in rows] == [
        (0, "", "a", "1"),
        (2, codes.MALFORMED_CSV, None, ""),
        (3, codes.MALFORMED_CSV, None, ""),
        (4, codes.INVALID_UTF8, None, ""),
        (5, "", 'd,5 ""', "6"),
        (6, "", "e", "7"),
        (7, codes.MALFORMED_CSV, None, ""),
    ]
    assert rows[1]["_message"] == "record 3: 1 fields, the header has 2"
    assert "not closed" in str(rows[-1]["_message"])


def test_bad_lines_of_a_text_file(tmp_path: Path) -> None:
    write(
        tmp_path / "a.txt",
        b"\xef\xbb\xbffirst\r\n\nlone \r cr\n\xff\n\xef\xbb\xbfa\x00\xe2\x80\xa8b\n" + b"x" * 101 + b"\nlast\r",
    )
    rows = read(tmp_path, shard_rows=2, max_row_bytes=100)
    texts = ["first", "", "lone \r cr", None, "\ufeffa\0\u2028b", None, "last\r"]
    assert [row["text"] for row in rows] == texts
    assert [row["_code"] for row in rows] == ["", "", "", codes.INVALID_UTF8, "", codes.ROW_TOO_LARGE, ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.txt.zst"])
def test_a_row_without_end_is_never_held(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (
        "xlmr_ray.batch.input.readers.raw",
        "xlmr_ray.batch.input.readers.csv",
        "xlmr_ray.batch.input.readers.dialect",
    ):
        monkeypatch.setattr(f"{limit}.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(raw, "CHUNK", 300)
    monkeypatch.setattr(raw, "BLOCK", 300)
    held = 0
    lines = raw.lines

    def watched(pieces: object) -> object:
        nonlocal held
        for line, size in lines(pieces):  # type: ignore[arg-type]
            held = max(held, len(line))
            yield line, size

    for reader in ("csv", "jsonl", "text"):
        monkeypatch.setattr(f"xlmr_ray.batch.input.readers.{reader}.lines", watched)
    quote = b'"' if "csv" in name else b""
    long = quote + b"x" * 100_000
    good = b'{"text": "good"}' if "json" in name else b"good"
    write(tmp_path / name, b"text\n" * ("csv" in name) + good + b"\n" + long + b"\n" + good + b"\n" + long)
    found, _ = plan(tmp_path, shard_rows=2)
    rows = rows_of(found, TEXT, 1000)
    assert [row["_code"] for row in rows] == ["", codes.ROW_TOO_LARGE, "", codes.ROW_TOO_LARGE]
    assert held <= 1300


# ---- the object under the reader


def test_a_changed_or_deleted_object_is_named(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b'{"text": "a"}\n'), ("b.txt", b"abc\n")):
        write(tmp_path / name, data)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    found, _ = plan(tmp_path)
    for shard in found:
        path = Path(shard.input.key)
        data = path.read_bytes()
        path.write_bytes(data + data)
        with pytest.raises(InputChanged, match=path.name):
            read_shard(shard, TEXT)
        path.unlink()
        with pytest.raises(InputChanged, match=f"{path.name}: deleted"):
            read_shard(shard, TEXT)


def test_a_change_during_the_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt", b"abc\n")
    (shard,), _ = plan(tmp_path)
    original = raw.Source.range

    def change_first(self: raw.Source, start: int, stop: int) -> bytes:
        os.utime(tmp_path / "a.txt", (1, 1))
        return original(self, start, stop)

    monkeypatch.setattr(raw.Source, "range", change_first)
    with pytest.raises(InputChanged, match=r"a\.txt"):
        read_shard(shard, TEXT)


def test_a_bucket_gives_the_rows_of_a_folder(tmp_path: Path) -> None:
    texts = [f"document {number} é" for number in range(50)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    write(tmp_path / "a.jsonl.gz", lines)
    write(tmp_path / "b.csv", ("text\n" + "\n".join(texts)).encode())
    write(tmp_path / "c.jsonl", lines)
    pq.write_table(pa.table({"text": texts}), tmp_path / "d.parquet", row_group_size=20)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s3cret"}
        fs, _ = filesystem("s3://read", options=options)
        fs.mkdir("read")
        fs.put(f"{tmp_path}/*", "read/in/")
        inputs = find_inputs("s3://read/in/", options=options).inputs
        found = list(plan_shards(inputs, shard_rows=7, columns=TEXT, options=options))
        assert "s3cret" not in repr(found)
        local, _ = plan(tmp_path, shard_rows=7)
        for remote, near in zip(found, local, strict=True):
            assert isinstance(remote, Shard)
            assert read_shard(remote, TEXT, options=options).equals(read_shard(near, TEXT))
        fs.pipe_file("read/in/c.jsonl", lines[::-1])
        fs.rm_file("read/in/d.parquet")
        for remote in found:
            assert isinstance(remote, Shard)
            if remote.input.key.endswith(("c.jsonl", "d.parquet")):
                with pytest.raises(InputChanged, match=remote.input.key):
                    read_shard(remote, TEXT, options=options)
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a.parquet", 0),
        ("a.parquet", 1),
        ("a.jsonl", 0),
        ("a.jsonl.gz", 0),
        ("a.jsonl.gz", 1),
        ("a.txt.zst", 1),
        ("a.csv", 0),
    ],
)
@pytest.mark.parametrize(
    "failure", [PermissionError(13, "denied"), ConnectionResetError("reset"), TimeoutError("slow")]
)
def test_an_error_of_the_store_is_never_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, allowed: int, failure: Exception
) -> None:
    """The request after `allowed` good ones fails, in the plan and in the read."""
    if name == "a.parquet":  # larger than what is read for the footer
        pq.write_table(pa.table({"text": [str(number) * 9 for number in range(30_000)]}), tmp_path / name)
    else:
        write(tmp_path / name, b"text\n" + b'{"text": 1}\n' * 10)
    (shard,), _ = plan(tmp_path, shard_rows=30_000)
    store = type(raw.Source(shard.input)._fs)
    original, calls = store.cat_file, 0

    def fail(self: object, path: str, **range: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise failure
        data: bytes = original(self, path, **range)
        return data

    monkeypatch.setattr(store, "cat_file", fail)
    with pytest.raises(type(failure), match=str(failure.args[-1])):
        read_shard(shard, TEXT)
    calls = 0
    if name != "a.parquet" or allowed == 0:  # the plan reads no more of Parquet than the footer
        with pytest.raises(type(failure), match=str(failure.args[-1])):
            plan(tmp_path)


def test_the_limit_is_checked(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"abc\n")
    (shard,), _ = plan(tmp_path)
    with pytest.raises(ValueError, match="expected 1 to"):
        read_shard(shard, TEXT, max_row_bytes=1 << 40)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": {}}, "no column is named"),
        ({"text": {"text": "a"}, "keep": ("b", "b")}, "there twice"),
        ({"text": {"text": "a"}, "keep": ("text",)}, "'text' is also the name under which a is carried"),
        ({"text": {"text": "a"}, "keep": ("id",)}, "say input.id: id, and it is carried along"),
        ({"text": {"text": "a"}, "keep": ("_row",)}, "'_row' is a name that the pipeline uses"),
    ],
)
def test_names_that_collide_are_refused(columns: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Columns(**columns)  # type: ignore[arg-type]


def write(path: Path, data: bytes) -> None:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
