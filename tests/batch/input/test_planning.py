"""Plans are stable and cut where they should; a damaged file is one dead letter, and its sound rows are still read."""

import gzip
import json
import os
import pickle
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlmr_ray.batch import codes
from xlmr_ray.batch.input import planning
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import footer, line_shards, raw
from xlmr_ray.batch.input.readers import parquet as parquet_reader
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs

TEXT = Columns({"text": "text"})
LINES = b"".join(b'{"text": "document %d", "noise": "%s"}\n' % (n, os.urandom(40).hex().encode()) for n in range(3000))


def plan(
    path: Path, columns: Columns = TEXT, *, shard_rows: int = 1000, shard_bytes: int = planning.SHARD_BYTES
) -> list[Shard | DeadLetter]:
    inputs = find_inputs(str(path)).inputs
    return list(plan_shards(inputs, shard_rows=shard_rows, columns=columns, shard_bytes=shard_bytes, workers=2))


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def parquet(path: Path, *, group: int = 1000, **columns: object) -> None:
    pq.write_table(pa.table(columns), path, row_group_size=group)


def test_ids_are_stable_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    parquet(tmp_path / "c.parquet", text=["x"] * 3000)
    planned = plan(tmp_path)
    assert [one.id for one in planned if isinstance(one, Shard)] == [
        f"{index:07d}-{part:06d}" for index in range(3) for part in range(3)
    ]
    assert planned == plan(tmp_path)
    assert pickle.loads(pickle.dumps(planned)) == planned
    for one in planned:
        assert isinstance(one, Shard)
        assert (one.first_row, one.rows) == (int(one.id[-6:]) * 1000, 1000)


def test_line_shards_are_bounded_in_bytes_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    found = [one for one in plan(tmp_path, shard_bytes=10_000) if isinstance(one, Shard)]
    assert all(10_000 <= one.stop - one.start < 10_200 for one in found[:-1])
    assert [one.start for one in found] == [0, *(one.stop for one in found[:-1])]
    assert (found[-1].stop, sum(one.rows for one in found)) == (len(LINES), 3000)


@pytest.mark.parametrize(
    ("groups", "shard_rows", "wanted"),
    [
        ([10, 10, 10], 10, [(0, 10), (10, 20), (20, 30)]),
        ([10, 10, 10], 25, [(0, 20), (20, 30)]),
        ([3, 4, 50, 3, 3], 20, [(0, 7), (7, 23), (23, 40), (40, 57), (57, 63)]),
        ([10, 0, 10], 20, [(0, 20)]),
        ([0], 5, []),
        ([], 5, []),
        ([5], 2, [(0, 1), (1, 3), (3, 5)]),
    ],
)
def test_parquet_is_cut_along_row_groups(
    tmp_path: Path, groups: list[int], shard_rows: int, wanted: list[tuple[int, int]]
) -> None:
    schema = pa.schema({"text": pa.string()})
    with pq.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for rows in groups:
            writer.write_table(pa.table({"text": ["x"] * rows}, schema=schema))
    found = plan(tmp_path, shard_rows=shard_rows)
    assert [(one.first_row, one.first_row + one.rows) for one in found if isinstance(one, Shard)] == wanted


@given(st.lists(st.integers(0, 40)), st.integers(1, 30), st.integers(1, 4000))
def test_row_ranges_cover_every_row_once(groups: list[int], shard_rows: int, shard_bytes: int) -> None:
    opened = parquet_reader.Opened(None, None, {}, (), tuple(groups), tuple(rows * 100 for rows in groups))
    ranges = list(parquet_reader.row_ranges(opened, shard_rows, shard_bytes))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(sum(groups)))
    assert all(0 < stop - start <= max(1, min(shard_rows, shard_bytes // 100)) for start, stop in ranges)


def test_parquet_shards_are_bounded_by_the_bytes_of_the_columns_that_are_read(tmp_path: Path) -> None:
    texts = [os.urandom(500).hex() for _ in range(1000)]
    pq.write_table(
        pa.table({"text": texts, "blob": [os.urandom(5000) for _ in texts]}), tmp_path / "a.parquet", row_group_size=100
    )
    found = plan(tmp_path, shard_bytes=320_000)
    assert [one.rows for one in found if isinstance(one, Shard)] == [300, 300, 300, 100]


# ---- dead letters


def damaged(name: str) -> tuple[str, bytes, str, str]:
    """File name, content, code, a part of the message."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a"] * 100}), sink)
    whole = sink.getvalue().to_pybytes()
    size = int.from_bytes(whole[-8:-4], "little")
    return {
        "zero bytes": ("a.parquet", b"", codes.EMPTY_FILE, "zero bytes"),
        "zero bytes of lines": ("a.jsonl", b"", codes.EMPTY_FILE, "zero bytes"),
        "not Parquet": ("a.parquet", b"PK" + whole[2:-4] + b"ABCD", codes.WRONG_FORMAT, "not Parquet"),
        "three bytes": ("a.parquet", b"PAR", codes.WRONG_FORMAT, "not Parquet"),
        "encrypted": ("a.parquet", whole[:-4] + b"PARE", codes.WRONG_FORMAT, "encrypted"),
        "cut Parquet": ("a.parquet", whole[:-50], codes.CORRUPT_FOOTER, "no footer"),
        "footer length": ("a.parquet", whole[:-8] + b"\xff\xff\xff\x7fPAR1", codes.CORRUPT_FOOTER, "should have"),
        "footer bytes": ("a.parquet", whole[: -8 - size] + b"\xff" * size + whole[-8:], codes.CORRUPT_FOOTER, "read"),
        "Parquet as lines": ("a.jsonl", whole, codes.WRONG_FORMAT, "content is Parquet"),
        "gzip as lines": ("a.csv", gzip.compress(LINES), codes.WRONG_FORMAT, "content is gzip"),
        "zstd as lines": ("a.txt", zstd(LINES), codes.WRONG_FORMAT, "content is zstd"),
        "zstd as gzip": ("a.txt.gz", zstd(LINES), codes.WRONG_FORMAT, "not gzip"),
        "lines as gzip": ("a.jsonl.gz", LINES, codes.WRONG_FORMAT, "not gzip"),
        "lines as zstd": ("a.jsonl.zst", LINES, codes.WRONG_FORMAT, "not zstd"),
        "UTF-16": ("a.txt", "text".encode("utf-16"), codes.WRONG_FORMAT, "UTF-16"),
        "one document": ("a.json", b'[\n {"text": "a"}\n]\n', codes.WRONG_FORMAT, "one JSON document"),
        "header twice": ("a.csv", b"text,text\na,b\n", codes.AMBIGUOUS_COLUMN, "more than once"),
        "no such header": ("a.csv", b"body,id\na,b\n", codes.MISSING_COLUMN, "the header has 2 fields; if"),
        "header is not UTF-8": ("a.csv", b"text,\xff\na,b\n", codes.WRONG_FORMAT, "header"),
        "header is open": ("a.csv", b'text,"b\na,b\n', codes.WRONG_FORMAT, "never closed"),
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "zero bytes", "zero bytes of lines", "not Parquet", "three bytes", "encrypted", "cut Parquet", "footer length",
        "footer bytes", "Parquet as lines", "gzip as lines", "zstd as lines", "zstd as gzip", "lines as gzip",
        "lines as zstd", "UTF-16", "one document", "header twice", "no such header", "header is not UTF-8",
        "header is open",
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_others_go_on(tmp_path: Path, name: str) -> None:
    file, data, code, says = damaged(name)
    (tmp_path / f"1{file}").write_bytes(data)
    for number in (0, 2):
        (tmp_path / f"{number}.txt").write_bytes(b"good\n")
    first, dead, last = plan(tmp_path)
    assert isinstance(first, Shard) and isinstance(last, Shard)  # noqa: PT018
    assert isinstance(dead, DeadLetter)
    assert (dead.key, dead.code) == (str(tmp_path / f"1{file}"), code)
    assert says in dead.message
    assert dead.message.startswith(f"{dead.key}: ")
    assert codes.CATALOGUE[dead.code].level == "file"


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_the_rows_before_a_cut_are_read(tmp_path: Path, pack: object, share: float) -> None:
    ending, packed = ("gz", gzip.compress(LINES)) if pack is gzip.compress else ("zst", zstd(LINES))
    (tmp_path / f"a.jsonl.{ending}").write_bytes(packed[: int(len(packed) * share)])
    *found, dead = plan(tmp_path, shard_rows=100)
    assert isinstance(dead, DeadLetter)
    rows = [row for one in found if isinstance(one, Shard) for row in read_shard(one, TEXT).to_pylist()]
    assert [row["text"] for row in rows] == [json.loads(line)["text"] for line in LINES.splitlines()[: len(rows)]]
    assert dead.code == codes.CORRUPT_STREAM
    if share > 0.2 or ending == "gz":  # zstd inflates blocks of 128 KiB whole
        assert len(rows) > 3000 * share - 1000
        assert f"the {len(rows)} rows before it are read" in dead.message


def test_every_byte_before_a_cut_is_read(tmp_path: Path) -> None:
    """What gzip itself can inflate of a cut file is the measure."""
    packed = gzip.compress(LINES)[:40_000]
    (tmp_path / "a.txt.gz").write_bytes(packed)
    inflated = zlib.decompressobj(31).decompress(packed)
    found = plan(tmp_path)[:-1]
    assert sum(one.rows for one in found if isinstance(one, Shard)) == inflated.count(b"\n")


def test_members_of_a_gzip_file_are_one_content(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(
        b"".join(gzip.compress(LINES[start : start + 1000]) for start in range(0, 5000, 1000))
    )
    (tmp_path / "b.jsonl.zst").write_bytes(
        b"".join(zstd(LINES[start : start + 1000]) for start in range(0, 5000, 1000))
    )
    expected = LINES[:5000].count(b"\n") + 1  # the last line is cut: an error row
    assert [one.rows for one in plan(tmp_path) if isinstance(one, Shard)] == [expected, expected]


def test_a_bomb_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_shards, "BOMB_BYTES", 1 << 20)
    for name, content in (("a.jsonl.gz", b"{}\n"), ("b.txt.zst", b"0"), ("c.csv.gz", b'"')):
        data = content * (2 << 20)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else zstd(data))
    planned = plan(tmp_path)
    assert [(one.code, "inflate" in one.message) for one in planned if isinstance(one, DeadLetter)] == [
        (codes.DECOMPRESSION_BOMB, True)
    ] * 3
    assert len(planned) == 3


@pytest.mark.parametrize(
    ("columns", "code", "says"),
    [
        (Columns({"text": "body"}), codes.MISSING_COLUMN, "column 'body' is missing; the file has: text, number, list"),
        (Columns({"text": "text", "text_pair": "b"}), codes.MISSING_COLUMN, "column 'b'"),
        (Columns({"text": "text"}, id="key"), codes.MISSING_COLUMN, "column 'key'"),
        (Columns({"text": "text"}, keep=("url",)), codes.MISSING_COLUMN, "column 'url'"),
        (Columns({"text": "number"}), codes.WRONG_COLUMN_TYPE, "'number' is int64, not a string"),
        (Columns({"text": "list"}), codes.WRONG_COLUMN_TYPE, "'list' is list"),
        (
            Columns({"text": "text"}, id="real"),
            codes.WRONG_COLUMN_TYPE,
            "'real' is double, not a string, an int",
        ),
    ],
)
def test_columns_of_a_parquet_file(tmp_path: Path, columns: Columns, code: str, says: str) -> None:
    parquet(tmp_path / "a.parquet", text=["a"], number=[1], list=[["a"]], real=[1.0])
    (dead,) = plan(tmp_path, columns)
    assert isinstance(dead, DeadLetter)
    assert dead.code == code
    assert says in dead.message


def test_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), tmp_path / "a.parquet")
    (dead,) = plan(tmp_path)
    assert isinstance(dead, DeadLetter)
    assert dead.code == codes.AMBIGUOUS_COLUMN


def test_a_text_file_has_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\n")
    for columns in (
        Columns({"text": "text"}, id="id"),
        Columns({"text": "a", "text_pair": "b"}),
        Columns({"text": "a"}, keep=("c",)),
    ):
        (dead,) = plan(tmp_path, columns)
        assert isinstance(dead, DeadLetter)
        assert dead.code == codes.MISSING_COLUMN
    assert isinstance(plan(tmp_path, Columns({"text": "body"}))[0], Shard)  # whatever the job calls it


class Loaded(pa.ExtensionType):  # type: ignore[misc]
    """Stands for a type that runs code when it is loaded."""

    loaded = 0

    def __init__(self) -> None:
        super().__init__(pa.string(), "test.loaded")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Loaded":
        cls.loaded += 1
        return cls()


@pytest.mark.parametrize("column", ["text", "other", "nested"])
def test_an_extension_type_is_not_loaded(tmp_path: Path, column: str) -> None:
    plain = pa.array(["a"])
    extension = pa.ExtensionArray.from_storage(Loaded(), plain)
    columns = {"text": plain, "other": plain, "nested": pa.StructArray.from_arrays([plain], ["inner"])}
    columns[column] = pa.StructArray.from_arrays([extension], ["inner"]) if column == "nested" else extension
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    pa.register_extension_type(Loaded())
    try:
        Loaded.loaded = 0
        pq.read_schema(tmp_path / "a.parquet")
        assert Loaded.loaded  # the danger is real
        Loaded.loaded = 0
        (dead,) = plan(tmp_path)
        assert Loaded.loaded == 0
    finally:
        pa.unregister_extension_type("test.loaded")
    assert isinstance(dead, DeadLetter)
    assert dead.code == codes.EXTENSION_TYPE
    assert "'test.loaded'" in dead.message


def test_arrows_own_extension_types_are_read(tmp_path: Path) -> None:
    text = pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}']))
    pq.write_table(pa.table({"text": text, "kept": text}), tmp_path / "a.parquet")
    columns = Columns({"text": "text"}, keep=("kept",))
    (shard,) = plan(tmp_path, columns)
    assert isinstance(shard, Shard)
    table = read_shard(shard, columns)
    assert (table["text"].to_pylist(), table["kept"].to_pylist()) == (['{"a": 1}'], ['{"a": 1}'])


@pytest.mark.parametrize(
    "after", [b"", b"\x00", b"\x18", b"\x18\xff", b"\x18\x04abc", b"\x18\x04****", b"\x18\x04aaaa", b"\x18\x84\x80"]
)
def test_a_crafted_schema_is_not_passed_on(after: bytes) -> None:
    with pytest.raises(raw.BadFile) as error:
        list(footer.extension_names(b"...\x0cARROW:schema" + after))
    assert error.value.code == codes.CORRUPT_FOOTER


def test_a_footer_larger_than_the_first_read(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", group=1, text=[f"{number}" * 300 for number in range(400)])
    assert pq.read_metadata(tmp_path / "a.parquet").serialized_size > footer.TAIL
    (shard,) = plan(tmp_path)
    assert isinstance(shard, Shard)
    assert read_shard(shard, TEXT).num_rows == 400


# ---- the store under the plan


def test_a_file_deleted_after_listing_is_a_dead_letter_and_a_changed_one_is_not(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"good\n")
    inputs = find_inputs(str(tmp_path)).inputs
    (tmp_path / "a.txt").unlink()
    dead, shard = plan_shards(inputs, shard_rows=10, columns=TEXT)
    assert isinstance(dead, DeadLetter)
    assert dead.code == codes.FILE_GONE
    assert isinstance(shard, Shard)
    (tmp_path / "b.txt").write_bytes(b"other\n")
    with pytest.raises(InputChanged, match=r"b\.txt"):
        list(plan_shards(inputs, shard_rows=10, columns=TEXT))


def test_plans_are_made_ahead_but_not_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n")
    (one,) = find_inputs(str(tmp_path)).inputs
    asked = 0

    def endless() -> object:
        nonlocal asked
        while True:
            asked += 1
            yield one

    planned = plan_shards(endless(), shard_rows=10, columns=TEXT, workers=3)  # type: ignore[arg-type]
    assert [next(planned).id for _ in range(50)] == [f"{number:07d}-000000" for number in range(50)]  # type: ignore[union-attr]
    assert asked <= 50 + 6
    planned.close()  # type: ignore[attr-defined]


def test_shard_rows_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        next(plan_shards([], shard_rows=0, columns=TEXT))


def test_the_catalogue_names_every_code_once() -> None:
    names = [value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)]
    assert sorted(names) == sorted(codes.CATALOGUE)
    assert all(code.name == name and code.meaning for name, code in codes.CATALOGUE.items())
