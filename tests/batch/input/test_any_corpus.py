"""Random corpora of which the expected rows are known by construction: links, partitions, formats, compressions, types
that drift, nested and odd ones, names that are renamed, damaged rows, stretches and files. What comes out is exactly
that, `verify` agrees, and DuckDB and Polars read the same.
"""

import csv
import gzip
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.batch.direct import job_of, rows_of, run_directly
from xlmr_ray.batch import codes
from xlmr_ray.batch.ledger.results import as_sql, iter_files
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store

TEXT = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
}
YEARS = {"int32": pa.int32(), "int64": pa.int64(), "double": pa.float64(), "null": pa.null()}
FOREIGN = {"zero": b"", "noise": b"\x93NUMPY" * 99}


@dataclass(frozen=True)
class Row:
    """`wrong`: a row that cannot be scored."""

    text: str
    note: str
    wrong: bool


@dataclass(frozen=True)
class File:
    """`damage`: a key of `FOREIGN`, "column" for one without the text, "rest" for one damaged after its rows; `kind` is
    that of strings, `year` of numbers; `blank`: how many blank lines, and other choices of the same chance.
    """

    format: str
    packing: str
    rows: tuple[Row, ...]
    lang: str
    linked: bool
    damage: str | None
    kind: str
    year: str
    blank: int


@dataclass(frozen=True)
class Corpus:
    """`text`: the name of the text's column; `partitioned`: whether `lang` is a folder; `dialect`: of CSV."""

    files: tuple[File, ...]
    text: str
    partitioned: bool
    dialect: str
    years: bool


@dataclass
class Expected:
    """By file and row: what is kept of it, or None for an error row; the codes of files by file, and lost rows."""

    rows: dict[tuple[str, int], dict | None] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    lost: int = 0


DEAD = {"zero": codes.EMPTY_FILE, "noise": codes.WRONG_FORMAT, "column": codes.MISSING_COLUMN}
DIALECTS = {
    "plain": ({}, {"quoting": csv.QUOTE_ALL}),
    "semicolon": ({"delimiter": ";"}, {"quoting": csv.QUOTE_ALL, "delimiter": ";"}),
    "backslash": ({"escape": "\\"}, {"quoting": csv.QUOTE_ALL, "escapechar": "\\", "doublequote": False}),
    "bare": ({"quote": None, "escape": "\\"}, {"quoting": csv.QUOTE_NONE, "escapechar": "\\", "quotechar": None}),
}
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=9) | st.sampled_from(
    ['a "quoted", one', "two\nlines", "back\\slash", "</s>", "tab\t;", "Straße 東京 👩‍👩‍👧", "\ufeffx"]
)
rows = st.builds(Row, words, words, st.sampled_from([False] * 7 + [True]))


@st.composite
def files(draw, years):
    format = "parquet" if years else draw(st.sampled_from(["parquet", "parquet", "jsonl", "csv", "tsv"]))
    packings = ["none", "snappy", "zstd", "gzip name"] if format == "parquet" else ["", ".gz", ".zst", ".zst skip"]
    packing = draw(st.sampled_from(packings))
    damages = [None] * 12 + [*FOREIGN, "column"] + ["rest"] * (2 * (packing == ".gz"))
    return File(
        format,
        packing,
        tuple(draw(st.lists(rows, min_size=1, max_size=12))),
        draw(st.sampled_from(["de", "x y", "__HIVE_DEFAULT_PARTITION__"])),
        draw(st.booleans()),
        draw(st.sampled_from(damages)),
        draw(st.sampled_from(list(TEXT))),
        draw(st.sampled_from(list(YEARS))),
        draw(st.integers(0, 3)),
    )


@st.composite
def corpora(draw):
    years = draw(st.booleans())
    sound = File("parquet", "none", (Row("sound", "", False),), "de", False, None, "string", "int64", 0)
    return Corpus(
        (sound, *draw(st.lists(files(years), min_size=1, max_size=5))),
        draw(st.sampled_from(["text", "doc.text"])),
        draw(st.booleans()),
        draw(st.sampled_from(list(DIALECTS))),
        years,
    )


def write(corpus: Corpus, folder: Path) -> Expected:
    expected = Expected()
    for number, file in enumerate(corpus.files):
        part = folder / "in" / (f"lang={file.lang.replace(' ', '%20')}" if corpus.partitioned else f"d{number % 2}")
        part.mkdir(parents=True, exist_ok=True)
        packing = {"gzip name": ".gzip", ".zst skip": ".zst"}.get(file.packing, file.packing)
        path = part / f"{number}.{file.format}{packing if packing.startswith('.') else ''}"
        content, places = of_parquet(corpus, file) if file.format == "parquet" else of_lines(corpus, file)
        content = FOREIGN.get(file.damage or "", content)
        if file.linked:
            (folder / "elsewhere").mkdir(exist_ok=True)
            (folder / "elsewhere" / path.name).write_bytes(content)
            path.symlink_to(folder / "elsewhere" / path.name)
        else:
            path.write_bytes(content)
        key = str(path)
        if file.damage in (None, "rest"):
            for place, row in zip(places, file.rows, strict=True):
                expected.rows[key, place] = None if row.wrong else kept(corpus, file, row, place)
        elif not (file.format == "jsonl" and (file.damage == "column" or (file.damage == "noise" and not packing))):
            # Of those, each line is an error row.
            expected.dead[key] = DEAD[file.damage]
            if file.damage == "column" and file.format == "parquet":
                expected.lost += len(file.rows) - 1
        if file.damage == "rest":
            expected.dead[key] = codes.CORRUPT_STREAM
        elif file.damage is None and file.format in ("csv", "tsv") and any(row.wrong for row in long(file)):
            expected.dead[key] = codes.SWALLOWED_LINES  # a malformed record of several lines may have swallowed some
        expected.files.add(key)
    return expected


def long(file: File) -> list[Row]:
    return [row for row in file.rows if "\n" in row.text + row.note]


def kept(corpus: Corpus, file: File, row: Row, place: int) -> dict:
    out = {"id": str(place), "original": row.text, "note": row.note}
    if corpus.partitioned:
        out["lang"] = None if file.lang.startswith("__") else file.lang
    if corpus.years:
        out["year"] = None if file.year == "null" else place
    return out


def of_parquet(corpus: Corpus, file: File) -> tuple[bytes, list[int]]:
    places = list(range(len(file.rows)))
    texts = pa.array([None if row.wrong else row.text for row in file.rows], pa.string())
    texts = texts.dictionary_encode() if file.kind == "dictionary" else texts.cast(TEXT[file.kind])
    columns = {"id": pa.array(places), "note": pa.array([row.note for row in file.rows]).cast(pa.large_string())}
    if corpus.years:
        type = YEARS[file.year]
        columns["year"] = pa.nulls(len(places)) if pa.types.is_null(type) else pa.array(places).cast(type)
    if file.damage == "column":
        columns["body"] = texts
    elif corpus.text == "doc.text" and file.blank:
        columns["doc"] = pa.StructArray.from_arrays([texts, columns["id"]], ["text", "n"])
    else:
        columns[corpus.text] = texts
    sink = io.BytesIO()
    codec = {"gzip name": "gzip"}.get(file.packing, file.packing)
    group = 99 if file.kind == "view" else 1 + file.blank  # pyarrow cannot cut views in structs
    pq.write_table(pa.table(columns), sink, compression=codec, row_group_size=group)
    return sink.getvalue(), places


def of_lines(corpus: Corpus, file: File) -> tuple[bytes, list[int]]:
    lines, places, number = [], [], 0
    for place, row in enumerate(file.rows):
        for _ in range(place % (1 + file.blank)):
            lines.append("\n")
            number += 1
        line = of_json if file.format == "jsonl" else of_csv
        lines.append(line(corpus, file, row, number))
        places.append(number)
        number += 1
    start = "" if file.format == "jsonl" else cells(corpus, file, ["id", name(corpus, file), "note"])
    data = (start + "".join(lines)).encode()
    if file.packing == ".gz":
        return gzip.compress(data) + (b"damage" + gzip.compress(data) if file.damage == "rest" else b""), places
    if file.packing.startswith(".zst"):
        packed = zstandard.compress(data)
        return b"\x50\x2a\x4d\x18\x04\0\0\0size" * ("skip" in file.packing) + packed, places
    return data, places


def name(corpus: Corpus, file: File) -> str:
    return "body" if file.damage == "column" else corpus.text


def of_json(corpus: Corpus, file: File, row: Row, number: int) -> str:
    value = {"id": number, "note": row.note}
    if name(corpus, file) == "doc.text" and file.blank:
        value["doc"] = {"text": row.text}
    else:
        value[name(corpus, file)] = row.text
    line = json.dumps(value, ensure_ascii=bool(file.blank))
    return (line[:-1] if row.wrong else line) + "\n"


def of_csv(corpus: Corpus, file: File, row: Row, number: int) -> str:
    return cells(corpus, file, [str(number), row.text, row.note, *(["one too many"] * row.wrong)])


def cells(corpus: Corpus, file: File, values: list[str]) -> str:
    out = io.StringIO()
    options = dict(DIALECTS[corpus.dialect][1])
    if file.format == "tsv":
        options["delimiter"] = "\t"
    csv.writer(out, lineterminator="\n", **options).writerow(values)
    return out.getvalue()


def as_comparable(table: list[dict]) -> Counter:
    return Counter(json.dumps(row, sort_keys=True, default=str) for row in table)


def check(corpus: Corpus, folder: Path) -> None:
    expected = write(corpus, folder)
    dialect = DIALECTS[corpus.dialect][0]
    keep = {corpus.text: "original", "note": "note"}
    keep |= {"lang": "lang"} if corpus.partitioned else {}
    keep |= {"year": "year"} if corpus.years else {}
    tsv = {name: value for name, value in dialect.items() if name != "delimiter"}
    options = {"csv": dialect, "tsv": tsv} if dialect else {}
    out = folder / "out"
    job = job_of("embedded:mini", folder / "in", out, text=corpus.text, id="id", keep=keep, **options)
    manifest = run_directly(job)

    table, errors = rows_of(out), rows_of(out, errors=True)
    got = {(row["source"], row["row"]): {name: row[name] for name in ("id", *keep.values())} for row in table}
    assert len(got) == len(table)
    assert got == {place: row for place, row in expected.rows.items() if row is not None}
    failed = Counter((row["source"], row["row"]) for row in errors if row["row"] >= 0)
    sound = {key for key, _ in expected.rows}
    wrong = {place for place, row in expected.rows.items() if row is None}
    assert {place for place in failed if place[0] in sound} == wrong
    assert max(failed.values(), default=1) == 1
    assert {row["source"]: row["code"] for row in errors if row["row"] < 0} == expected.dead
    assert {row["source"] for row in (*table, *errors)} == expected.files
    assert manifest.rows_in == manifest.rows_ok + manifest.rows_error == len(table) + len(errors)
    assert manifest.rows_lost >= expected.lost
    assert verify(open_store(str(out))).ok

    files = list(iter_files(str(out)))
    ours = as_comparable(table)
    reader = duckdb.sql("".join(as_sql(iter(files)))).to_arrow_table()
    assert as_comparable(reader.to_pylist()) == ours
    polars = pytest.importorskip("polars")
    assert as_comparable(polars.read_parquet(files, hive_partitioning=False, glob=False).to_arrow().to_pylist()) == ours


def setting(examples):
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    # To make a corpus smaller takes longer than to look at it.
    phases = [Phase.explicit, Phase.generate]
    return settings(max_examples=examples, deadline=None, suppress_health_check=quiet, phases=phases)


@setting(10)
@given(corpora())
def test_ten_corpora(tmp_path_factory, corpus):
    check(corpus, tmp_path_factory.mktemp("corpus"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@setting(200)
@given(corpora())
def test_two_hundred_corpora(tmp_path_factory, corpus):
    check(corpus, tmp_path_factory.mktemp("corpus"))
