"""The catalogue of bad input through the pipeline: every row in is one row out or one error row, by file and position,
with the code that is documented; and the good ones get the answers that they get without the bad ones.
"""

import gzip
import json
import pickle
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.bad_input import BETWEEN, LIMIT, Corpus, Expected, Unpickled, bad_input, bad_text
from xlmr_ray import JobFailed
from xlmr_ray.batch import codes, prepare, run
from xlmr_ray.batch.input.readers import line_shards, raw
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.stages.block import from_block, raise_failure, to_block
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.recipe import shard_to_json
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.store.open import open_store

FULL_SIZE = line_shards.BOMB_BYTES
ANSWER = ("label", "score", "tokens", "truncated")


@pytest.fixture(scope="module")
def mark(tmp_path_factory):
    return tmp_path_factory.mktemp("mark") / "loaded"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, mark):
    return bad_input(tmp_path_factory.mktemp("bad") / "input", mark)


@pytest.fixture(autouse=True)
def small_bombs(monkeypatch):
    """A bomb is what inflates to over 32 MiB and 200 times its size: those that are real take their time."""
    monkeypatch.setattr(line_shards, "BOMB_BYTES", 32 << 20)


def job_of(path, out, *, empty="error", rows=50, task="text-classification", model="embedded:mini", **columns):
    content = {
        "model": model,
        "input": {"path": str(path), "max_row_bytes": LIMIT, **columns},
        "tasks": [{"task": task}],
        "output": {"path": str(out)},
        "cluster": {"shard_rows": rows},
        "errors": {"max_fraction": 1, "empty": empty},
        "engine": {"device": "cpu"},
    }
    return check_job(content, "test")


def through(job, out):
    """Output rows and error rows of a job without a cluster: the same steps, one shard after another."""
    prepared = prepare.prepare_run(job, open_store(str(out)))
    tokenize, encode = Tokenize(prepared.recipe), Encode(prepared.recipe)
    outputs, errors = [], []
    for shard in prepared.plan.shards:
        block = encode(tokenize(to_block(shard_to_json(shard), {})))
        raise_failure(block.to_pylist()[0])
        tables = from_block(block)[1]
        assert tables["output"].num_rows + tables["errors"].num_rows == shard.rows
        outputs.append(tables["output"])
        errors += tables["errors"].to_pylist()
    for file in prepared.plan.dead:
        errors.append({"source": file.input.key, "row": -1, "id": "", "code": file.code, "message": file.message})
    return pa.concat_tables(outputs), errors


def clean_answers(wanted, folder):
    """The answers to what is expected to be scored, without anything bad beside it: (file, row) -> answer."""
    folder.mkdir()
    good = [(place, one) for place, one in wanted.items() if not one.code]
    (folder / "clean.jsonl").write_text("".join(json.dumps({"text": one.text, "id": "x"}) + "\n" for _, one in good))
    rows, errors = through(job_of(folder / "clean.jsonl", folder / "out", empty="score"), folder / "out")
    assert not errors
    assert rows.num_rows == len(good)
    return {place: row for (place, _), row in zip(good, rows.select(ANSWER).to_pylist(), strict=True)}


@pytest.fixture(scope="module")
def answers(corpus, tmp_path_factory):
    return clean_answers(corpus.rows, tmp_path_factory.mktemp("clean") / "input")


def check(rows, errors, corpus, wanted, answers):
    """Every row and file of the corpus against what came out."""
    name = {key: Path(key).name for key in {*rows["source"].to_pylist(), *(row["source"] for row in errors)}}
    found = [(name[row["source"]], row["row"]) for row in errors if row["row"] >= 0]
    scored = [(name[row["source"]], row["row"]) for row in rows.select(["source", "row"]).to_pylist()]
    assert max(Counter([*found, *scored]).values()) == 1
    assert {*found, *scored} == set(wanted)
    failed = {(name[row["source"]], row["row"]): row for row in errors}
    for place, row in zip(scored, rows.to_pylist(), strict=True):
        expected = wanted[place]
        assert not expected.code, (place, expected)
        assert {key: row[key] for key in ANSWER} == answers[place], (place, expected.entry)
        assert row["text_changed"] == expected.changed, (place, expected)
        if expected.truncated is not None:
            assert row["truncated"] == expected.truncated
    for place in found:
        assert failed[place]["code"] == wanted[place].code, (place, wanted[place], failed[place])
        assert codes.CATALOGUE[failed[place]["code"]].level == "row"
    dead = {key: failed[key, -1]["code"] for key, position in failed if position == -1}
    assert dead == {key: code for key, (_, code) in corpus.files.items()}
    for (key, _), row in failed.items():
        assert BETWEEN not in row["message"], row
        assert row["row"] >= 0 or row["message"].startswith(f"{corpus.folder / key}: "), row


def test_rows_in_are_rows_out_and_error_rows(corpus, answers, mark, tmp_path):
    rows, errors = through(job_of(corpus.folder, tmp_path, id="id"), tmp_path)
    check(rows, errors, corpus, corpus.rows, answers)
    assert not mark.exists()  # nothing was unpickled


def test_the_pickles_in_it_would_show(tmp_path):
    pickle.loads(pickle.dumps(Unpickled(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("empty", ["error", "score"])
def test_plain_text_and_empty_documents(tmp_path, empty):
    corpus = bad_text(tmp_path / "input")
    wanted = corpus.rows
    if empty == "score":
        wanted = {
            place: Expected(one.entry, text="") if one.code == codes.EMPTY_TEXT else one
            for place, one in wanted.items()
        }
        assert wanted != corpus.rows
    rows, errors = through(job_of(corpus.folder, tmp_path / "out", empty=empty), tmp_path / "out")
    check(rows, errors, corpus, wanted, clean_answers(wanted, tmp_path / "clean"))


def test_a_whole_run(steps_here, corpus, answers, mark, tmp_path):
    out = tmp_path / "out"
    outcome = run.run_job(job_of(corpus.folder, out, id="id", rows=500), quiet=True)
    name = current(open_store(str(out))).run_id
    rows = pq.read_table(out / "data" / name)
    errors = pq.read_table(out / "errors" / name).to_pylist()
    check(rows, errors, corpus, corpus.rows, answers)
    assert not mark.exists()
    assert verify(open_store(str(out))).ok
    assert outcome.manifest.rows_in == len(corpus.rows) + len(corpus.files)
    assert outcome.manifest.rows_error == sum(bool(one.code) for one in corpus.rows.values()) + len(corpus.files)


def test_every_code_of_a_row_or_file_is_in_the_catalogue_of_bad_input(corpus):
    """But those that need another task, other settings, or a fault of memory, process or time: they have own tests."""
    seen = {one.code for one in corpus.rows.values()} | {code for _, code in corpus.files.values()}
    assert set(codes.CATALOGUE) - seen == {
        "shard_too_large",
        "tokenizer_error",
        "scoring_error",
        "killed_worker",
        "timed_out",
        "non_finite",
        "out_of_memory",
        "no_tokens",
        "token_out_of_range",
        "no_mask",
        "wrong_choices",
        "wrong_spans",
        "file_gone",
        "schema_drift",
        "unfit_value",
    }


SECOND = [  # what the second field holds, as JSON, and the code
    ('"a sound one"', ""),
    (None, "missing_field"),
    ("null", "null_field"),
    ("5", "wrong_type"),
    ('{"a": 1}', "wrong_type"),
    ('""', "empty_text"),
    ('"\\ud800"', ""),
    ('"again a sound one"', ""),
]
CHOICES = [
    ('["one", "two"]', ""),
    (None, "missing_field"),
    ("null", "null_field"),
    ("5", "wrong_type"),
    ("[]", "wrong_type"),
    ('["one", 2]', "wrong_type"),
    ('["one", null]', "wrong_type"),
    ('"not the JSON of a list"', "wrong_type"),
    ('"[\\"as\\", \\"JSON\\"]"', ""),
]


@pytest.mark.parametrize(
    ("task", "model", "roles", "fields"),
    [
        ("rerank", "relevance", {"text_pair": "second"}, SECOND),
        ("question-answering", "answers", {"question": "text", "context": "second"}, SECOND),
        ("multiple-choice", "choice", {"choices": "second"}, CHOICES),
    ],
)
def test_second_fields(tmp_path, task, model, roles, fields):
    lines = ['{"text": "Is it?"' + ("" if value is None else f', "second": {value}') + "}\n" for value, _ in fields]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    job = job_of(tmp_path / "in.jsonl", tmp_path, task=task, model=f"embedded:mini/heads/{model}", **roles)
    rows, errors = through(job, tmp_path)
    assert {row["row"]: row["code"] for row in errors} == {n: code for n, (_, code) in enumerate(fields) if code}
    assert rows["row"].to_pylist() == [n for n, (_, code) in enumerate(fields) if not code]
    (tmp_path / "good.jsonl").write_text(
        "".join(line for line, (_, code) in zip(lines, fields, strict=True) if not code)
    )
    alone, _ = through(
        job.model_copy(update={"input": job.input.model_copy(update={"path": [str(tmp_path / "good.jsonl")]})}),
        tmp_path,
    )
    assert rows.drop_columns(["source", "row"]).equals(alone.drop_columns(["source", "row"]))


def test_second_fields_of_parquet(tmp_path):
    """Of pairs and choices together: a row fails for either."""
    pair = pa.array([b"sound", None, b"\xff", b"", b"sound"], pa.binary()).view(pa.string())
    choices = pa.array([["a", "b"], ["a"], ["a"], ["a"], ["a", None]], pa.list_(pa.string()))
    pq.write_table(pa.table({"text": ["t"] * 5, "pair": pair, "choices": choices}), tmp_path / "in.parquet")
    job = job_of(
        tmp_path / "in.parquet", tmp_path, task="rerank", model="embedded:mini/heads/relevance", text_pair="pair"
    )
    _, errors = through(job, tmp_path)
    assert [(row["row"], row["code"]) for row in errors] == [(1, "null_field"), (2, "invalid_utf8"), (3, "empty_text")]
    job = job_of(
        tmp_path / "in.parquet", tmp_path, task="multiple-choice", model="embedded:mini/heads/choice", choices="choices"
    )
    _, errors = through(job, tmp_path)
    assert [(row["row"], row["code"]) for row in errors] == [(4, "wrong_type")]


def test_a_file_deleted_after_listing_and_a_drift_of_kept_types(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a", "b"], "year": [1, 2]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["c"], "year": [1.5]}), folder / "b.parquet")
    (folder / "c.jsonl").write_text('{"text": "d"}\n')
    listed = prepare.find_inputs

    def and_deleted(*args, **options):
        found = listed(*args, **options)
        (folder / "c.jsonl").unlink()
        return found

    monkeypatch.setattr(prepare, "find_inputs", and_deleted)
    rows, errors = through(job_of(folder, tmp_path / "out", keep=["year"]), tmp_path / "out")
    assert rows.select(["row", "year"]).to_pylist() == [
        {"row": 0, "year": 1.0},
        {"row": 1, "year": 2.0},
        {"row": 0, "year": 1.5},
    ]
    assert {(Path(row["source"]).name, row["row"], row["code"]) for row in errors} == {("c.jsonl", -1, "file_gone")}


@pytest.mark.parametrize("format", ["jsonl", "parquet", "jsonl.gz"])
def test_no_permission_is_not_bad_data(corpus, tmp_path, monkeypatch, format):
    name = {"jsonl": "rows.jsonl", "parquet": "rows-string.parquet", "jsonl.gz": "rows.jsonl.gz"}[format]

    def refused(*_):
        raise PermissionError(13, "Permission denied", name)

    def prepared(out):
        return prepare.prepare_run(job_of(corpus.folder / name, out, id="id"), open_store(str(out)))

    planned = prepared(tmp_path / "out")
    monkeypatch.setattr(raw.Source, "range", refused)
    block = Tokenize(planned.recipe)(to_block(shard_to_json(planned.plan.shards[0]), {}))
    with pytest.raises(JobFailed, match=rf"{name}.*[Pp]ermission"):
        raise_failure(block.to_pylist()[0])
    with pytest.raises(JobFailed, match=rf"{name}.*[Pp]ermission"):
        prepared(tmp_path / "other")


@pytest.mark.slow
def test_a_bomb_of_full_size(tmp_path, monkeypatch):
    monkeypatch.setattr(line_shards, "BOMB_BYTES", FULL_SIZE)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\0" * (1200 << 20), 1))
    corpus = Corpus(tmp_path / "in")
    corpus.good("good.jsonl", 1, json.dumps({"text": BETWEEN}).encode() + b"\n")
    (tmp_path / "bomb.jsonl.gz").rename(corpus.folder / "bomb.jsonl.gz")
    _, errors = through(job_of(corpus.folder, tmp_path / "out"), tmp_path / "out")
    assert [(row["row"], row["code"]) for row in errors] == [(-1, "decompression_bomb")]
