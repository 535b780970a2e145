"""Web archives as warcio and fastwarc write them: each record's text, id and header fields; what is damaged is said."""

import gzip
import io
from pathlib import Path

import pytest

from tests.batch.direct import job_of, rows_of, run_directly
from xlmr_ray.batch import codes
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import DeadLetter, plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers import READERS, warc
from xlmr_ray.batch.input.readers.warc import Warc
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.errors import UserError

pytest.importorskip("warcio")
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

fastwarc = pytest.importorskip("fastwarc")

URI, ID, DATE = "WARC-Target-URI", "WARC-Record-ID", "WARC-Date"
COLUMNS = Columns(
    {"text": "text"},
    id=ID,
    keep=("url", "date", "language"),
    renamed=(
        ("url", URI),
        ("date", DATE),
        ("language", "WARC-Identified-Content-Language"),
    ),
)
TEXTS = [
    "Guten Tag,\nzwei Zeilen",
    "",
    "mit\r\n\r\nleerer Zeile",
    "WARC/1.0\r\nWARC-Type: conversion\r\n\r\n",
    "ü" * 40000,
]


def wet(path, texts, charset=None, compressed=True):
    """As Common Crawl's: a record about the archive first."""
    kind = "text/plain" + (f"; charset={charset}" if charset else "")
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=compressed)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "test"}))
        for number, text in enumerate(texts):
            payload = io.BytesIO(text if isinstance(text, bytes) else text.encode(charset or "utf-8"))
            fields = {"WARC-Identified-Content-Language": "deu"} if number % 2 else {}
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.org/{number}",
                    "conversion",
                    payload=payload,
                    warc_content_type=kind,
                    warc_headers_dict=fields,
                )
            )
    return path


def by_fastwarc(path, texts):
    """The same, a member of gzip each."""
    with path.open("wb") as file:
        stream = fastwarc.GzipWriter(file) if path.name.endswith(".gz") else file
        for number, text in enumerate(texts):
            record = fastwarc.WarcRecord()
            record.init_headers(fastwarc.WarcRecordType.conversion)
            record.headers[URI] = f"https://example.org/{number}"
            record.set_bytes_content(text.encode())
            record.write(stream)
            if stream is not file:
                stream.finish()
        if stream is not file:
            stream.close()
    return path


def of_warcio(path):
    """The oracle: the text and fields of each record of text."""
    with path.open("rb") as file:
        return [
            {
                "id": record.rec_headers.get_header(ID),
                "url": record.rec_headers.get_header(URI),
                "date": record.rec_headers.get_header(DATE),
                "language": record.rec_headers.get_header("WARC-Identified-Content-Language"),
                "text": record.content_stream().read().decode(),
            }
            for record in ArchiveIterator(file)
            if record.rec_type == "conversion"
        ]


def planned(path, shard_rows=2, readers=READERS, columns=COLUMNS):
    return list(plan_shards(find_inputs(str(path)).inputs, shard_rows=shard_rows, columns=columns, readers=readers))


def rows(path, columns=COLUMNS, readers=READERS, shard_rows=2, **more):
    found = []
    for shard in planned(path, shard_rows, readers, columns):
        if not isinstance(shard, DeadLetter):
            found += read_shard(shard, columns, readers=readers, **more).to_pylist()
    return found


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.wet.gz", "a.wet"])
@pytest.mark.parametrize("write", [wet, by_fastwarc])
def test_texts_and_fields(tmp_path, name, write):
    path = tmp_path / name
    write(path, TEXTS, compressed=name.endswith(".gz")) if write is wet else write(path, TEXTS)
    expected = of_warcio(path)
    assert [row["text"] for row in expected] == TEXTS
    for shard_rows in (1, 2, 100):
        got = rows(path, shard_rows=shard_rows)
        assert [{name: row[name] for name in expected[0]} for row in got] == expected
        first = 1 if write is wet else 0  # the record about the archive counts
        assert [row["_row"] for row in got] == list(range(first, first + len(TEXTS)))


def test_a_job_reads_a_limit_and_goes_on(tmp_path):
    (tmp_path / "in").mkdir()
    wet(tmp_path / "in" / "a.warc.wet.gz", [f"Text {number}" for number in range(90)])
    for limit, count in ((50, 50), (None, 90)):
        more = {"limit": limit} if limit else {}
        job = job_of("embedded:mini", tmp_path / "in", tmp_path / "out", id=ID, keep={URI: "url"}, **more)
        run_directly(job)
        assert [row["url"] for row in rows_of(tmp_path / "out")] == [
            f"https://example.org/{number}" for number in range(count)
        ]


def test_character_sets(tmp_path):
    assert [row["text"] for row in rows(wet(tmp_path / "a.wet", ["äöü"], "iso-8859-1", compressed=False))] == ["äöü"]
    bad, good = rows(wet(tmp_path / "b.wet", [b"\xff\xfe", "ä"], compressed=False))
    assert (bad["_code"], bad["_message"], good["text"]) == (
        codes.INVALID_UTF8,
        "record 1: invalid utf-8 at byte 0",
        "ä",
    )
    (one,) = rows(wet(tmp_path / "c.wet", ["a"], "ascii", compressed=False), max_row_bytes=1)
    assert one["_code"] == ""
    (one,) = rows(wet(tmp_path / "d.wet", ["ab"], compressed=False), max_row_bytes=1)
    assert (one["_code"], one["url"]) == (codes.ROW_TOO_LARGE, "https://example.org/0")


@pytest.mark.parametrize("name", ["a.wet", "a.wet.gz"])
def test_what_is_damaged_is_said_and_what_is_before_it_read(tmp_path, name):
    path = wet(tmp_path / name, [f"Text {number} " * 50 for number in range(40)], compressed=name.endswith("gz"))
    data = path.read_bytes()
    header = data.index(b"\x1f\x8b" if name.endswith("gz") else b"WARC/1.0", len(data) // 2)
    cuts = [
        data[:end] for end in range(len(data) * 2 // 3, len(data) * 2 // 3 + 900, 300 if name.endswith("gz") else 31)
    ]
    for damaged in (data[:header] + b"\0" * 64 + data[header + 64 :], *cuts):
        path.write_bytes(damaged)
        *_, dead = planned(path)
        if not isinstance(dead, DeadLetter):  # cut between two records
            assert damaged.endswith((b"\r", b"\n"))
            continue
        assert isinstance(dead, DeadLetter)
        assert dead.code == codes.CORRUPT_STREAM
        got = rows(path)
        assert 10 < len(got) < 40
        assert [row["text"] for row in got] == [f"Text {number} " * 50 for number in range(len(got))]


def test_what_is_no_archive(tmp_path):
    (tmp_path / "a.warc").write_text("hello\nworld\n" * 9)
    with_nothing = tmp_path / "b" / "b.warc.gz"
    with_nothing.parent.mkdir()
    wet(with_nothing, [])
    (dead,) = planned(tmp_path / "a.warc")
    assert dead.code == codes.WRONG_FORMAT
    assert planned(with_nothing) == []
    with pytest.raises(UserError, match=r"input\.warc: unknown key 'extrakt', did you mean 'extract'"):
        job_of("embedded:mini", tmp_path, tmp_path / "out", warc={"extrakt": "x"})
    wet(tmp_path / "c.warc", ["a"], compressed=False)
    (dead,) = planned(tmp_path / "c.warc", columns=Columns({"text": "body"}))
    assert (dead.code, "WARC-Target-URI" in dead.message) == (codes.MISSING_COLUMN, True)


PAGE = "<html><head><title>T</title><meta charset={}><script>x</script></head><body><p>Grüße<p>aus Köln</body></html>"


def pages(path):
    """As a crawler stores them: request and response; one in the character set of its header, one of its `meta`."""
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for number, (kind, body) in enumerate(
            [
                ("text/html; charset=iso-8859-1", PAGE.format("utf-8").encode("latin-1")),
                ("text/html", PAGE.format("windows-1252").encode("cp1252")),
                ("text/html", gzip.compress(PAGE.format("utf-8").encode())),
                ("image/png", b"\x89PNG"),
            ]
        ):
            fields = [("Content-Type", kind), *([("Content-Encoding", "gzip")] if number == 2 else [])]
            headers = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
            uri = f"https://example.org/{number}"
            writer.write_record(
                writer.create_warc_record(
                    uri,
                    "request",
                    http_headers=StatusAndHeaders("GET / HTTP/1.1", [], is_http_request=True),
                )
            )
            writer.write_record(
                writer.create_warc_record(uri, "response", payload=io.BytesIO(body), http_headers=headers)
            )
    return path


def test_pages_are_read_only_by_a_named_extractor(tmp_path):
    resiliparse = pytest.importorskip("resiliparse.extract.html2text")
    path = pages(tmp_path / "a.warc.gz")
    (dead,) = planned(path)
    assert (dead.code, "input.warc: {extract: resiliparse}" in dead.message) == (codes.WRONG_FORMAT, True)
    got = rows(path, readers={**READERS, "warc": Warc(extract="resiliparse")})
    assert [(row["_row"], row["url"]) for row in got] == [(2 * i + 1, f"https://example.org/{i}") for i in range(3)]
    assert [row["text"] for row in got] == [resiliparse.extract_plain_text(PAGE)] * 3
    assert "Grüße" in got[0]["text"]


def test_without_the_package_it_is_one_line(tmp_path, monkeypatch):
    wet(tmp_path / "a.wet.gz", ["a"])
    monkeypatch.setitem(__import__("sys").modules, "fastwarc", None)
    with pytest.raises(UserError, match=r"not installed \(fastwarc\): pip install 'xlmr-ray\[warc\]'"):
        planned(tmp_path)
    assert Path(tmp_path / "a.wet.gz").exists()


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_store_that_fails_while_it_is_read_gives_no_shortened_text(tmp_path, monkeypatch, name):
    """fastwarc takes what a stream raises for its end, also in the middle of a record."""
    wet(tmp_path / name, ["first", "x" * 3_000_000], compressed=name.endswith("gz"))
    (shard,) = planned(tmp_path / name, shard_rows=100)
    real = warc.chunks

    def failing(*given):
        yield next(real(*given))
        raise OSError("connection reset")

    monkeypatch.setattr(warc, "chunks", failing)
    with pytest.raises(OSError, match="connection reset"):
        read_shard(shard, COLUMNS)
