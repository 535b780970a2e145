"""All that can be wrong with input, as a folder of files: each entry at least once in every format that can hold it,
among good rows, and what must become of each row and file.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch import codes

LIMIT = 11 << 20  # bytes of a row, for the job: so that a document of 10 MB is under it, and one of 12 MB is over
BETWEEN = "A good row between the bad ones."


@dataclass(frozen=True)
class Expected:
    """What must become of a row: an error row of `code`, or, without one, the answer to `text`."""

    entry: str
    code: str = ""
    text: str | None = None
    changed: bool = False
    truncated: bool | None = None  # None: not looked at


@dataclass(frozen=True)
class Line:
    """A row as bytes of a line format, without the line's end."""

    content: bytes
    expected: Expected


# ---- rows

TEXTS = {
    "whitespace only": " \t \u3000\u00a0 ",
    "zero-width only": "\u200b\u200c\u200d\u2060\ufeff",
    "NUL and control characters": "a\0b\x01\x07\x1b[31mc\x7f",
    "BOM in the text": "\ufeffafter a mark",
    "CRLF in the text": "one\r\ntwo\r\n",
    "lone CR in the text": "one\rtwo",
    "newline in the text": "one\ntwo\n",
    "U+2028, U+2029, U+0085": "one\u2028two\u2029three\x85four",
    "right-to-left": "שלום עולם, مرحبا بالعالم",
    "bidi controls": "abc \u202egnp.exe\u202c \u2066x\u2069 \u200f",
    "ZWJ emoji and flags": "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺🇺🇳",
    "long combining run": "e" + "\u0301" * 2000,
    "NFC": "é ü ñ 각",
    "NFD": "e\u0301 u\u0308 n\u0303 \u1100\u1161\u11a8",
    "literal special tokens": "<s> a </s> <mask> </s> <pad> <unk>",
    "a script that is all <unk>": "\U00012000\U00012001 \U00012002\U0001202b",
    "noncharacters and private use": "\ufffe \uffff \ue000 \U0010ffff",
    "1 MB without a space": "蛋" * 350_000,
}
HUGE = "A sentence of a very long document, which goes on. " * 205_000  # over 10 MB
OVER = "x" * (12 << 20)


def _json(**fields: object) -> bytes:
    return json.dumps(fields, ensure_ascii=False).encode()


def _bad(entry: str, code: str, content: bytes) -> Line:
    return Line(content, Expected(entry, code))


def _good(entry: str, content: bytes, text: str, *, changed: bool = False) -> Line:
    return Line(content, Expected(entry, text=text, changed=changed))


def json_lines() -> list[Line]:
    """Every row-level entry as a JSON line."""
    return [
        *(_good(entry, _json(text=text, id=entry), text) for entry, text in TEXTS.items()),
        _bad("malformed JSON", codes.MALFORMED_JSON, b"{text: 'unquoted'}"),
        _bad("malformed JSON", codes.MALFORMED_JSON, b'{"text": "a"} {"text": "b"}'),
        _bad("malformed JSON", codes.MALFORMED_JSON, b'{"text": "a", "n": ' + b"1" * 5000 + b"}"),
        _bad("malformed JSON", codes.MALFORMED_JSON, b"\x00\x00\x00\x00"),
        _bad("JSON scalar or array", codes.NOT_AN_OBJECT, b'"a string"'),
        _bad("JSON scalar or array", codes.NOT_AN_OBJECT, b"12"),
        _bad("JSON scalar or array", codes.NOT_AN_OBJECT, b"null"),
        _bad("JSON scalar or array", codes.NOT_AN_OBJECT, b'[{"text": "a"}]'),
        _bad("text field missing", codes.MISSING_FIELD, _json(id="x")),
        _bad("text null", codes.NULL_FIELD, _json(text=None)),
        *(_bad("text not a string", codes.WRONG_TYPE, _json(text=value)) for value in (5, 1.5, True, ["a"], {"a": 1})),
        _bad("invalid UTF-8", codes.INVALID_UTF8, b'{"text": "a\xff\xfeb"}'),
        _bad("invalid UTF-8", codes.INVALID_UTF8, b'{"text": "\xed\xa0\x80"}'),  # a surrogate in bytes
        _bad("invalid UTF-8", codes.INVALID_UTF8, b'{"text": "\xc0\xaf"}'),  # an overlong slash
        *(
            _bad("id of the wrong type", codes.WRONG_ID_TYPE, _json(text="a", id=value))
            for value in (1.5, True, [1], {})
        ),
        _bad(
            "JSON nesting bomb", codes.NESTING_TOO_DEEP, b'{"text": "a", "n": ' + b"[" * 99_999 + b"]" * 99_999 + b"}"
        ),
        _bad("JSON nesting bomb", codes.NESTING_TOO_DEEP, b'{"text": ' * 500 + b'"a"' + b"}" * 500),
        _bad("JSON nesting bomb", codes.NESTING_TOO_DEEP, b"[" * 99_999),
        _bad("empty", codes.EMPTY_TEXT, _json(text="", id="empty")),
        _good("lone surrogate", b'{"text": "a\\ud800b \\udc00"}', "a\ufffdb \ufffd", changed=True),
        _good("lone surrogate", b'{"text": "ok", "id": "\\udfff"}', "ok", changed=True),
        _good("surrogates that make a pair", b'{"text": "\\ud83d\\ude00 fine"}', "😀 fine"),
        _good("BOM at line start", b'\xef\xbb\xbf{"text": "after a BOM"}', "after a BOM"),
        _good("CRLF", b'{"text": "with a return"}\r', "with a return"),
        _good("spaces around", b' \t {"text": "padded"} \t', "padded"),
        _good("raw control characters", b'{"text": "tab\t bell\x07 return\r"}', "tab\t bell\x07 return\r"),
        _good("duplicate JSON keys", b'{"text": "first", "text": "the last one counts"}', "the last one counts"),
        _good("duplicate ids", _json(text="one of two", id="twice"), "one of two"),
        _good("duplicate ids", _json(text="the other of two", id="twice"), "the other of two"),
        _good("integer and missing ids", _json(text="integer", id=2**70), "integer"),
        _good("integer and missing ids", _json(text="null", id=None), "null"),
        _good("numbers that are none", b'{"text": "numbers", "n": [NaN, Infinity, 1e999]}', "numbers"),
        _good("brackets in a string", _json(text="[{" * 5000), "[{" * 5000),
    ]


CUT = Line(b'{"text": "the last line is cu', Expected("truncated last line", codes.TRUNCATED_LINE))


def large_json_lines() -> list[Line]:
    huge = Expected("10 MB document", text=HUGE, truncated=True)
    return [Line(_json(text=HUGE), huge), _bad("row over the byte limit", codes.ROW_TOO_LARGE, _json(text=OVER))]


def csv_lines() -> list[Line]:
    texts = {entry: text for entry, text in TEXTS.items() if not text.startswith("\ufeff")}
    return [
        *(_good(entry, _record(entry, text), text) for entry, text in texts.items()),
        _bad("too many fields", codes.MALFORMED_CSV, b"x,a,b"),
        _bad("too few fields", codes.MALFORMED_CSV, b"only"),
        _bad("text after a quote", codes.MALFORMED_CSV, b'x,"a" , "b",c'),
        _bad("invalid UTF-8", codes.INVALID_UTF8, b"x,a\xff"),
        _bad("empty", codes.EMPTY_TEXT, b"x,"),
        _good("CRLF", b"x,with a return\r", "with a return"),
        _good("a quote inside", b'x,5" wide', '5" wide'),
    ]


def text_lines() -> list[Line]:
    texts = {entry: text for entry, text in TEXTS.items() if "\n" not in text and not text.endswith("\r")}
    return [
        *(_good(entry, text.encode(), text) for entry, text in texts.items()),
        _bad("invalid UTF-8", codes.INVALID_UTF8, b"a\xff"),
        _bad("empty", codes.EMPTY_TEXT, b""),
        _good("CRLF", b"with a return\r", "with a return"),
    ]


def _record(*fields: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="").writerow(fields)
    return out.getvalue().encode()


Cell = bytes | None


def parquet_rows() -> list[tuple[Cell, Cell, Expected]]:
    """Text, id, and what is expected, for the entries that a Parquet column of strings can hold."""
    return [
        *((text.encode(), entry.encode(), Expected(entry, text=text)) for entry, text in TEXTS.items()),
        (None, b"null", Expected("text null", codes.NULL_FIELD)),
        (b"a\xff\xfe", b"bytes", Expected("invalid UTF-8", codes.INVALID_UTF8)),
        (b"\xed\xa0\x80", b"surrogate", Expected("invalid UTF-8", codes.INVALID_UTF8)),
        (b"fine", b"\xff", Expected("invalid UTF-8 in the id", codes.INVALID_UTF8)),
        (b"", b"empty", Expected("empty", codes.EMPTY_TEXT)),
        (b"one of two", b"twice", Expected("duplicate ids", text="one of two")),
        (b"the other of two", b"twice", Expected("duplicate ids", text="the other of two")),
        (b"no id", None, Expected("integer and missing ids", text="no id")),
    ]


def _strings(cells: Iterable[Cell]) -> pa.Array:
    return pa.array(list(cells), pa.binary()).view(pa.string())


KINDS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "string": lambda array: array,
    "large_string": lambda array: array.cast(pa.large_binary()).view(pa.large_string()),
    "string_view": lambda array: array.cast(pa.string_view()),
    "binary": lambda array: array.view(pa.binary()),
    "dictionary": lambda array: pa.DictionaryArray.from_arrays(
        pa.array(
            [None if cell is None else n for n, cell in enumerate(array.view(pa.binary()).to_pylist())], pa.int32()
        ),
        array.fill_null(""),
    ),
}


# ---- the folder


class Corpus:
    """Writes the files. `rows` says what must become of each (file, position), `files` which files, or rests of
    files, are dead letters.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[tuple[str, int], Expected] = {}
        self.files: dict[str, tuple[str, str]] = {}  # name -> entry, code
        folder.mkdir(parents=True, exist_ok=True)

    def lines(
        self,
        name: str,
        lines: list[Line],
        good: bytes,
        *,
        header: bytes = b"",
        blank: bool = True,
        cut: Line | None = None,
    ) -> None:
        """The lines, each followed by a good one, in a file packed as its name says. With `blank`, a blank line that
        counts and is no row; with `cut`, that last line without an end.
        """
        content: list[bytes] = [header] if header else []
        position = 0
        for line in lines:
            self.rows[name, position] = line.expected
            self.rows[name, position + 1] = Expected("good", text=BETWEEN)
            content += [line.content, good]
            position += 2
            if blank and position == 4:
                content.append(b"")
                position += 1
        data = b"\n".join(content) + b"\n"
        if cut is not None:
            self.rows[name, position] = cut.expected
            data += cut.content
        packed = {"gz": gzip.compress, "zst": zstd}.get(name.rpartition(".")[2], bytes)(data)
        (self.folder / name).write_bytes(packed)

    def parquet(self, name: str, rows: list[tuple[Cell, Cell, Expected]], kind: str, *, group: int = 7) -> None:
        mixed = [one for row in rows for one in (row, (BETWEEN.encode(), b"b", Expected("good", text=BETWEEN)))]
        for position, (_, _, expected) in enumerate(mixed):
            self.rows[name, position] = expected
        columns = {"text": _strings(row[0] for row in mixed), "id": _strings(row[1] for row in mixed)}
        table = pa.table({column: KINDS[kind](values) for column, values in columns.items()})
        pq.write_table(table, self.folder / name, row_group_size=group)

    def dead(self, name: str, entry: str, code: str, data: bytes) -> None:
        self.files[name] = (entry, code)
        (self.folder / name).write_bytes(data)

    def good(self, name: str, count: int, data: bytes) -> None:
        """A file of `count` good rows, or one whose first so many can be read."""
        for position in range(count):
            self.rows[name, position] = Expected("good", text=BETWEEN)
        (self.folder / name).write_bytes(data)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


class Unpickled:
    """A pickle that leaves a file behind if anybody loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def bad_input(folder: Path, mark: Path) -> Corpus:
    """The whole catalogue. `mark` is a path that comes to be if a pickle in one of the files is loaded."""
    corpus = Corpus(folder)
    good = _json(text=BETWEEN)
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst"):
        corpus.lines(name, json_lines(), good, cut=CUT)
    corpus.lines("rows-crlf.jsonl", [Line(one.content + b"\r", one.expected) for one in json_lines()], good + b"\r")
    corpus.lines("rows-bom.jsonl", [_good("BOM at line start", b"\xef\xbb\xbf" + good, BETWEEN)], good)
    corpus.lines("rows-large.jsonl.gz", large_json_lines(), good)
    record = _record("b", BETWEEN)
    unclosed = Line(b'x,"never closed\n' + record, Expected("a quote that is never closed", codes.MALFORMED_CSV))
    corpus.lines("rows.csv", csv_lines(), record, header=b"\xef\xbb\xbfid,text", cut=unclosed)
    corpus.files["rows.csv"] = ("a quote that is never closed", codes.SWALLOWED_LINES)  # the line after it
    corpus.lines("rows.csv.gz", csv_lines(), record, header=b"id,text")
    for kind in KINDS:
        corpus.parquet(f"rows-{kind}.parquet", parquet_rows(), kind)
    huge = Expected("10 MB document", text=HUGE, truncated=True)
    over = Expected("row over the byte limit", codes.ROW_TOO_LARGE)
    corpus.parquet("rows-large.parquet", [(HUGE.encode(), b"h", huge), (OVER.encode(), b"o", over)], "string")
    damaged_files(corpus, good, mark)
    for name in ("_SUCCESS", ".hidden.jsonl", "rows.jsonl.crc", "notes.md"):
        (folder / name).write_bytes(b"not to be read")
    return corpus


def bad_text(folder: Path) -> Corpus:
    """What a file of plain text can hold: a document a line, and no other column, so that it is another job's input."""
    corpus = Corpus(folder)
    for name in ("rows.txt", "rows.txt.gz", "rows.txt.zst"):
        corpus.lines(name, text_lines(), BETWEEN.encode(), blank=False)
    corpus.dead("empty.txt", "zero-byte file", codes.EMPTY_FILE, b"")
    corpus.dead("utf16.txt", "wrong extension", codes.WRONG_FORMAT, BETWEEN.encode("utf-16"))
    corpus.dead("bomb.txt.zst", "decompression bomb", codes.DECOMPRESSION_BOMB, zstd(b"\0" * (40 << 20)))
    return corpus


def damaged_files(corpus: Corpus, good: bytes, mark: Path) -> None:
    """File-level entries, and files of which a part can be read."""
    table = pa.table({"text": [BETWEEN] * 30, "id": ["g"] * 30})
    whole = parquet_bytes(table, row_group_size=10, write_page_checksum=True, compression="none")
    footer = int.from_bytes(whole[-8:-4], "little")
    lines = (good + b"\n") * 4000
    dead = corpus.dead
    dead("empty.parquet", "zero-byte file", codes.EMPTY_FILE, b"")
    dead("empty.jsonl", "zero-byte file", codes.EMPTY_FILE, b"")
    dead("empty.jsonl.gz", "zero-byte file", codes.EMPTY_FILE, b"")
    dead("magic.parquet", "bad magic", codes.WRONG_FORMAT, b"XXXX" + whole[4:-4] + b"XXXX")
    dead("cut.parquet", "cut footer", codes.CORRUPT_FOOTER, whole[:-20])
    dead("footer.parquet", "damaged footer", codes.CORRUPT_FOOTER, whole[: -8 - footer] + b"\xff" * footer + whole[-8:])
    dead("length.parquet", "damaged footer", codes.CORRUPT_FOOTER, whole[:-8] + b"\xff\xff\xff\x7fPAR1")
    dead("encrypted.parquet", "encrypted Parquet", codes.WRONG_FORMAT, whole[:-4] + b"PARE")
    dead("parquet.jsonl", "wrong extension", codes.WRONG_FORMAT, whole)
    dead("gzip.csv", "wrong extension", codes.WRONG_FORMAT, gzip.compress(lines))
    dead("plain.jsonl.gz", "wrong extension", codes.WRONG_FORMAT, lines)
    dead("zstd.jsonl.gz", "wrong extension", codes.WRONG_FORMAT, zstd(lines))
    dead("jsonl.parquet", "wrong extension", codes.WRONG_FORMAT, lines)
    dead("utf16.jsonl", "wrong extension", codes.WRONG_FORMAT, BETWEEN.encode("utf-16"))
    dead("document.json", "wrong extension", codes.WRONG_FORMAT, b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n')
    dead("bomb.jsonl.gz", "decompression bomb", codes.DECOMPRESSION_BOMB, gzip.compress(lines * 200))
    dead("bomb.jsonl.zst", "decompression bomb", codes.DECOMPRESSION_BOMB, zstd(b"\0" * (40 << 20)))
    other = pa.table({"body": ["a"], "id": ["b"]})
    dead("no-column.parquet", "schema drift", codes.MISSING_COLUMN, parquet_bytes(other))
    dead("no-column.csv", "schema drift", codes.MISSING_COLUMN, b"id,body\na,b\n")
    number = pa.table({"text": [1], "id": ["b"]})
    dead("number.parquet", "schema drift", codes.WRONG_COLUMN_TYPE, parquet_bytes(number))
    real = pa.table({"text": ["a"], "id": [1.5]})
    dead("real-id.parquet", "id of the wrong type", codes.WRONG_COLUMN_TYPE, parquet_bytes(real))
    twice = pa.Table.from_arrays([pa.array(["a"])] * 3, ["text", "text", "id"])
    dead("twice.parquet", "duplicate columns", codes.AMBIGUOUS_COLUMN, parquet_bytes(twice))
    payload = pickle.dumps(Unpickled(mark))
    for number_, name in enumerate(
        ("ray.data.arrow_tensor", "ray.data.arrow_pickled_object", "arrow.py_extension_type")
    ):
        metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": payload}
        schema = pa.schema([pa.field("text", pa.string(), metadata=metadata), ("id", pa.string())])
        data = parquet_bytes(pa.table({"text": ["a"], "id": ["b"]}, schema=schema))
        dead(f"extension-{number_}.parquet", "unexpected Arrow extension type", codes.EXTENSION_TYPE, data)

    # Of these a part can be read.
    group = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(1).column(0)
    hole = whole.index(BETWEEN.encode(), group.dictionary_page_offset) + 3
    corpus.good("group.parquet", 30, whole[:hole] + b"\xff\xff\xff" + whole[hole + 3 :])
    for position in range(10, 20):
        corpus.rows["group.parquet", position] = Expected("corrupt row group", codes.UNREADABLE_ROW)
    noise = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(2500)]
    noisy = b"".join(_json(text=BETWEEN, noise=one) + b"\n" for one in noise)
    packed = gzip.compress(noisy)
    part = packed[: len(packed) * 3 // 4]
    dead("cut.jsonl.gz", "cut gzip", codes.CORRUPT_STREAM, part)
    corpus.good("cut.jsonl.gz", zlib.decompressobj(31).decompress(part).count(b"\n"), part)
    packed = zstd(noisy)
    part = packed[: len(packed) * 3 // 4]
    dead("cut.jsonl.zst", "cut zstd", codes.CORRUPT_STREAM, part)
    corpus.good("cut.jsonl.zst", zstd_lines(part), part)


def zstd_lines(part: bytes) -> int:
    """Whole lines in a cut stream. Inflated byte by byte: a larger read that meets the end loses what it has."""
    stream = pa.CompressedInputStream(pa.BufferReader(part), "zstd")
    count = 0
    try:
        while byte := stream.read(1):
            count += byte == b"\n"
    except OSError:
        return count
    raise AssertionError("not cut")
