"""No text of a document is in any message, plan, record, report or log: a word that stands in every cell of every kind
of file, sound and damaged, is looked for everywhere.
"""

import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batch.direct import job_of, rows_of, run_directly
from xlmr_ray import UserError
from xlmr_ray.batch import codes
from xlmr_ray.batch.observe.printing import status_lines
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.observe.report.page import report_page
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.stages.block import guarded, raise_failure, to_block
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed

WORD = "Quetzalcoatl"
SOUND = {"text": f"a {WORD}", "other": WORD}
# Codes of what the reading of no file raises: of scoring, of processes, of the store.
ELSEWHERE = {
    codes.EMPTY_TEXT, codes.TOKENIZER_ERROR, codes.SCORING_ERROR, codes.KILLED_WORKER, codes.TIMED_OUT,
    codes.NON_FINITE, codes.OUT_OF_MEMORY, codes.NO_TOKENS, codes.NO_MASK, codes.WRONG_CHOICES, codes.WRONG_SPANS,
    codes.SHARD_TOO_LARGE, codes.TOKEN_OUT_OF_RANGE, codes.FILE_GONE, codes.DECOMPRESSION_BOMB,
    codes.SCHEMA_DRIFT, codes.EXTENSION_TYPE,
}  # fmt: skip


def lines(*rows):
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"


def parquet(*, damage=None, **columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(sink.getvalue().to_pybytes())
    if damage is not None:
        data[damage] ^= 0xFF
    return bytes(data)


def of_bytes(*values):
    return pa.array(values, pa.binary()).view(pa.string())


W = WORD.encode()
DEEP = b'{"text": ' + b"[" * 200 + b'"' + W + b'"' + b"]" * 200 + b"}"
FILES = {
    "sound.jsonl": lines(*[SOUND] * 40),
    "sound.parquet": parquet(text=[f"a {WORD}"] * 40, other=[WORD] * 40),
    "broken.jsonl": lines(
        W, b'{"text": "%b" "%b"}' % (W, W), b'"%b"' % W, {"text": [WORD]}, {"text": {WORD: WORD}}, {WORD: WORD},
        {"text": None, WORD: WORD}, b'{"text": "%b\xff"}' % W, DEEP, b'{"text": "\\%b"}' % W, b"[%b" % W,
        {"text": WORD * 4000}, SOUND, b'{"text": "%b", "other": %b}' % (W, b"1" * 5000),
    ) + b'{"text": "' + W,
    "ids.jsonl": lines({**SOUND, "id": [WORD]}, {**SOUND, "id": {WORD: 1}}),
    "one.json": b'{\n"text": "' + W + b'"\n}\n',
    "no-header.csv": f"1,a {WORD} here,{WORD}\n2,{WORD},{WORD}\n".encode(),
    "no-header-of-words.csv": f"{WORD},texx\n{WORD},{WORD}\n".encode(),
    "no-header.tsv": f"{WORD}\t{WORD} {WORD}\n".encode(),
    "long-header.csv": (WORD * 30_000 + "\n").encode(),
    "twice.csv": f"text,text,id,other,{WORD}\n{WORD},{WORD},1,{WORD},{WORD}\n".encode(),
    "open.csv": f'text,id,other\n"a {WORD},1,{WORD}\n{WORD},2,{WORD}\n{WORD},3,{WORD}\n'.encode(),
    "fields.csv": f"text,id,other\n{WORD}\n{WORD},{WORD},{WORD},{WORD}\n".encode() + W + b"\xff,1,2\n",
    "header.csv": W + b"\xff,text\n" + W + b"," + W + b"\n",
    "cut.jsonl.gz": gzip.compress(lines(*[SOUND] * 40))[:-12],
    "cut.parquet": parquet(text=[WORD], other=[WORD])[:-9],
    "no.parquet": W * 9,
    "utf-16.txt": f"{WORD}\n".encode("utf-16"),
    "number.parquet": parquet(text=[1], other=[WORD]),
    "missing.parquet": parquet(body=[WORD], other=[WORD]),
    "twice.parquet": b"",
    "bytes.parquet": parquet(text=of_bytes(W + b"\xff", W, None), other=[WORD] * 3),
    "page.parquet": parquet(text=[f"{WORD} {n}" for n in range(40)], other=[WORD] * 40, damage=200),
    "unfit.parquet": parquet(text=[WORD] * 2, other=[WORD] * 2, year=[2**53 + 1, 1]),
    "years.parquet": parquet(text=[WORD], other=[WORD], year=[1.5]),
}  # fmt: skip


def write(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(FILES[name])


def check(folder, out, job, caplog, capfd):
    """Runs it, and looks everywhere but at the columns that the job names as kept. Returns the codes that came up."""
    store = open_store(str(out))
    said = []
    found = set()
    try:
        run_directly(job)
        errors = rows_of(out, errors=True)
        found = {row["code"] for row in errors}
        said += map(str, errors)
        report = gather_report(store)
        said += [report_page(report), json.dumps(report.to_json())]
        said += status_lines(store)
    except (UserError, JobFailed) as error:
        said.append(str(error))
    said += [path.read_bytes().decode(errors="replace") for path in out.rglob("_runs/**/*") if path.is_file()]
    said += [record.getMessage() for record in caplog.records]
    said += capfd.readouterr()
    assert not [text[max(0, text.find(WORD) - 200) :][:500] for text in said if WORD in text]
    return found


def of(folder, out, **more):
    return job_of("embedded:mini", folder, out, max_row_bytes=20_000, **more)


def test_of_every_kind_of_file(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    twice = pa.Table.from_arrays([pa.array([WORD])] * 3, ["text", "text", "id"])
    write(tmp_path / "in", FILES)
    pq.write_table(twice, tmp_path / "in" / "twice.parquet")
    (tmp_path / "in" / "empty.jsonl").touch()
    (tmp_path / "in" / "years.parquet").unlink()
    (tmp_path / "in" / "unfit.parquet").unlink()
    found = check(tmp_path / "in", tmp_path / "out", of(tmp_path / "in", tmp_path / "out"), caplog, capfd)
    write(tmp_path / "years", ["unfit.parquet", "years.parquet"])
    job = of(tmp_path / "years", tmp_path / "out-2", keep="year")
    found |= check(tmp_path / "years", tmp_path / "out-2", job, caplog, capfd)
    write(tmp_path / "ids", ["ids.jsonl", "sound.jsonl"])
    job = of(tmp_path / "ids", tmp_path / "out-3", id="id")
    found |= check(tmp_path / "ids", tmp_path / "out-3", job, caplog, capfd)
    assert codes.CATALOGUE.keys() - found == ELSEWHERE


@pytest.mark.parametrize("name", FILES)
def test_of_a_file_alone(tmp_path, name):
    """Then its message is the job's."""
    write(tmp_path / "in", [name])
    for text, keep in (("text", None), ("other", "text"), ("texts", None), ("a.b", "c")):
        job = of(tmp_path / "in", tmp_path / "out", text=text, **({"keep": keep} if keep else {}))
        said = ""
        try:
            prepare_run(job, open_store(str(tmp_path / "out")))
        except UserError as error:
            said = str(error)
        assert WORD not in said
        assert len(said) < 2000


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.lists(st.sampled_from([*'",\n\\{}:[]\t', WORD, "text", "\xff"]), max_size=60),
    ending=st.sampled_from(["jsonl", "csv", "tsv"]),
)
def test_of_anything(tmp_path_factory, data, ending):
    folder = tmp_path_factory.mktemp("any")
    (folder / f"a.{ending}").write_bytes(b"text\n" * (ending != "jsonl") + "".join(data).encode("latin-1"))
    from tests.batch.input.test_readers import TEXT, plan, read_shard

    shards, dead = plan(folder)
    said = [letter.message for letter in dead]
    for shard in shards:
        said += read_shard(shard, TEXT)["_message"].to_pylist()
    assert not [text for text in said if WORD in text]


@pytest.mark.parametrize("message", ["got '{}'", 'got "{}"', "got `{}` and '{}'", "'{}\n{}'", "no end '{}", "{}"])
def test_of_an_exception_that_nobody_expected(message):
    def broken(block):
        raise ValueError(message.format(WORD, WORD))

    block = guarded(broken, to_block("{}", {}))
    with pytest.raises(JobFailed, match="the pipeline failed: ValueError") as error:
        raise_failure(block.to_pylist()[0])
    assert WORD not in str(error.value)
