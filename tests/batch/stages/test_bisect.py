"""Rows that make a step raise: found by halves, alone, and the answers of the others are what they were."""

import json
import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.batch.stages.deadly import DeadlyEncode, DeadlyTokenize, PanicException
from tests.batch.test_run import job
from tests.models import save_classifier
from xlmr_ray import JobFailed, UserError
from xlmr_ray.batch import codes
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.stages import encode, suspects, tokenize
from xlmr_ray.batch.stages.bisect import by_halves
from xlmr_ray.batch.stages.block import from_block, raise_failure, to_block
from xlmr_ray.batch.stages.recipe import shard_to_json
from xlmr_ray.batch.stages.rows import good_rows
from xlmr_ray.batch.stages.suspects import RowRange
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.engine.engine import Engine
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer


def rows_of(texts):
    count = len(texts)
    return pa.table(
        {
            "_row": pa.array(range(count), pa.int64()),
            "_code": pa.array([""] * count, pa.string()),
            "_message": pa.array([""] * count, pa.string()),
            "text": pa.array(texts, pa.string()),
        }
    )


def raising(errors, calls):
    """A step that raises if a good row's text is a key of `errors`."""

    def work(rows):
        texts = rows["text"].take(good_rows(rows)).to_pylist()
        calls.append(len(texts))
        for text in texts:
            if text in errors:
                raise errors[text]
        return rows

    return work


@given(count=st.integers(0, 40), bad=st.sets(st.integers(0, 39)))
def test_each_row_once_and_the_bad_ones_with_their_code(count, bad):
    bad = {row for row in bad if row < count}
    calls = []
    work = raising({str(row): RuntimeError(f"text {row}") for row in bad}, calls)
    parts = list(by_halves(work, rows_of([str(row) for row in range(count)]), "scoring_error"))
    rows = pa.concat_tables(parts)
    assert rows["_row"].to_pylist() == list(range(count))
    assert rows["_code"].to_pylist() == ["scoring_error" if row in bad else "" for row in range(count)]
    assert len(calls) <= 1 + 16 * len(bad)  # of 40 rows: 12 halves on the way, the probe without rows, and the last


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (IndexError("the document"), "scoring_error", "IndexError in work"),
        (PanicException("inside of `the document`"), "scoring_error", "PanicException in work"),
        (MemoryError(), "out_of_memory", "does not fit in the memory"),
        (pa.ArrowMemoryError("malloc of size 5 failed"), "out_of_memory", "does not fit in the memory"),
        (AssertionError("the document"), "scoring_error", "AssertionError in work"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_codes_and_messages(error, code, message):
    (good, bad) = by_halves(raising({"bad": error}, []), rows_of(["good", "bad"]), "scoring_error")
    assert good["_code"].to_pylist() == [""]
    assert bad["_code"].to_pylist() == [code]
    assert message in bad["_message"].to_pylist()[0]
    assert "document" not in bad["_message"].to_pylist()[0]


@pytest.mark.parametrize("error", [UserError("u"), JobFailed("j"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_what_no_row_is_to_blame_for_is_raised(error):
    calls = []
    with pytest.raises(type(error)):
        list(by_halves(raising({"bad": error}, calls), rows_of(["good", "bad"]), "scoring_error"))
    assert calls == [2]


def test_a_step_that_fails_without_rows_too_is_not_the_rows_fault():
    def work(rows):
        raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk"):
        list(by_halves(work, rows_of(["a", "b", "c"]), "scoring_error"))


# ---- in the steps of a job

LONG = "A sentence of a long document, which goes on and on. " * 12
TASKS = {
    "one": [{"task": "text-classification"}],
    "windows": [{"task": "text-classification", "long": "windows"}],
    "several": [
        {"task": "text-classification", "long": "windows", "name": "whole"},
        {"task": "embedding", "long": "windows", "name": "vector"},
        {"task": "text-classification", "max_length": 20, "name": "cut"},
        {"task": "feature-extraction", "name": "tokens"},
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


def scored(tmp_path, model, texts, tasks, *, wary=False, rows=100):
    """Output rows and error rows of one shard through the steps, in one process."""
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    content = job(model, path, tmp_path / "out", rows=rows, tasks=TASKS[tasks], input={"path": str(path), "id": "id"})
    prepared = prepare_run(content, open_store(str(tmp_path / "out")))
    tokenize, encode = DeadlyTokenize(prepared.recipe), DeadlyEncode(prepared.recipe)
    if wary:
        for step in (tokenize, encode):
            step.suspects.note = suspects.Note("0000000-000000", 0, len(texts))
            step.suspects.store.put(step.suspects.key, step.suspects.note.to_bytes())
            step.suspects.note, step.suspects.wary = None, 1
    (shard,) = prepared.plan.shards
    block = encode(tokenize(to_block(shard_to_json(shard), {})))
    raise_failure(block.to_pylist()[0])
    tables = from_block(block)[1]
    return tables["output"], tables["errors"].to_pylist()


@pytest.mark.parametrize("tasks", TASKS)
def test_the_others_answers_are_the_same_to_the_last_bit(tmp_path, model, tasks):
    texts = [f"{LONG * (n % 3)} number {n}" for n in range(17)]
    (tmp_path / "clean").mkdir()
    clean, errors = scored(tmp_path / "clean", model, texts, tasks)
    assert not errors
    special = {
        0: ("RAISE in tokenize", codes.TOKENIZER_ERROR),
        5: ("PANIC in tokenize", codes.TOKENIZER_ERROR),
        6: ("RAISE in encode", codes.SCORING_ERROR),
        11: ("FULL in encode", codes.OUT_OF_MEMORY),
        16: ("PANIC in encode", codes.SCORING_ERROR),
    }
    for place, (text, _) in special.items():
        texts[place] = text
    rows, errors = scored(tmp_path, model, texts, tasks)
    assert {row["row"]: row["code"] for row in errors} == {place: code for place, (_, code) in special.items()}
    others = [place for place in range(17) if place not in special]
    assert rows.drop_columns("source").equals(clean.drop_columns("source").take(others))


@pytest.mark.parametrize("tasks", TASKS)
def test_in_pieces_the_answers_are_the_same_to_the_last_bit(tmp_path, model, tasks, monkeypatch):
    texts = [f"{LONG * random.randint(0, 2)} number {n}" if n % 7 else "" for n in range(30)]
    whole, errors = scored(tmp_path, model, texts, tasks)
    done = []
    for step, name in ((tokenize.Tokenize, "tokenized"), (encode.Encode, "scored")):
        whole_step = getattr(step, name)

        def counted(self, *given, whole_step=whole_step):
            done.append(given[-1].num_rows)
            return whole_step(self, *given)

        monkeypatch.setattr(step, name, counted)
    pieces, same_errors = scored(tmp_path, model, texts, tasks, wary=True)
    assert pieces.equals(whole)
    assert same_errors == errors
    assert done == [3, 4, 4, 4, 3, 4, 4, 4] * 2


@pytest.mark.parametrize("tasks", TASKS)
def test_equal_rows_fail_each_under_its_own_id_and_are_computed_once(tmp_path, model, tasks, monkeypatch):
    texts = ["good", "bad text", LONG, "good", "bad text", LONG, "RAISE in encode", "RAISE in encode", "good"]
    real, computed = Engine.compute, []

    def poisoned(self, batch, parts):
        computed.append(batch.sequences)
        outputs = [output.clone() for output in real(self, batch, parts)]
        for output, part in zip(outputs, parts, strict=True):
            sizes = batch.lengths if part.task.unit == "token" else [1] * batch.sequences
            wrong = [length == bad for length, size in zip(batch.lengths, sizes, strict=True) for _ in range(size)]
            output[[i for i, one in enumerate(wrong) if one]] = float("nan")
        return outputs

    bad = len(XLMRobertaTokenizer.from_pretrained(model)("bad text")["input_ids"])
    monkeypatch.setattr(Engine, "compute", poisoned)
    rows, errors = scored(tmp_path, model, texts, tasks)
    assert [(error["row"], error["id"], error["code"]) for error in errors] == [
        (1, "1", codes.NON_FINITE),
        (4, "4", codes.NON_FINITE),
        (6, "6", codes.SCORING_ERROR),
        (7, "7", codes.SCORING_ERROR),
    ]
    assert rows["row"].to_pylist() == [0, 2, 3, 5, 8]
    plain = rows.drop_columns(["source", "row", "id"]).to_pylist()
    assert plain[0] == plain[2] == plain[4] != plain[1] == plain[3]


def test_a_row_that_was_found_to_kill_is_not_tried_again(tmp_path, model, monkeypatch):
    texts = [f"number {n}" for n in range(6)] + ["KILL in tokenize"]
    found = (codes.KILLED_WORKER, "died")
    monkeypatch.setattr(
        suspects.Suspects, "pieces", lambda _, count: [RowRange(0, 4), RowRange(4, 6), RowRange(6, 7, found)]
    )
    rows, (error,) = scored(tmp_path, model, texts, "one")
    assert (error["row"], error["id"], error["code"], error["message"]) == (6, "6", *found)
    assert rows["row"].to_pylist() == list(range(6))


def test_a_shard_whose_reading_kills_is_error_rows(tmp_path, model, monkeypatch):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"] * 9, "year": [1] * 9}), tmp_path / "in.parquet", row_group_size=3)
    content = job(model, tmp_path / "in.parquet", tmp_path / "out", rows=3)
    content = content.model_copy(update={"input": content.input.model_copy(update={"id": None, "keep": ["year"]})})
    prepared = prepare_run(content, open_store(str(tmp_path / "out")))
    monkeypatch.setattr(suspects.Suspects, "unreadable", lambda _: (codes.KILLED_WORKER, "died"))
    monkeypatch.setattr(tokenize, "rows_of_shard", lambda *_, **__: pytest.fail("read again"))
    encoded = encode.Encode(prepared.recipe)
    shard = prepared.plan.shards[1]
    block = encoded(tokenize.Tokenize(prepared.recipe)(to_block(shard_to_json(shard), {})))
    raise_failure(block.to_pylist()[0])
    tables = from_block(block)[1]
    assert tables["output"].schema.field("year").type == pa.int64()  # one table with the other shards'
    assert [(row["row"], row["code"]) for row in tables["errors"].to_pylist()] == [
        (row, codes.KILLED_WORKER) for row in (3, 4, 5)
    ]


def test_an_error_that_loses_the_gpu_ends_the_process(monkeypatch, model, tmp_path):
    texts = ["a", "b"]
    (tmp_path / "in.txt").write_text("\n".join(texts))
    content = job(model, tmp_path / "in.txt", tmp_path / "out")
    content = content.model_copy(update={"input": content.input.model_copy(update={"id": None, "keep": []})})
    step = encode.Encode(prepare_run(content, open_store(str(tmp_path / "out"))).recipe)
    step.check_device(ValueError())  # a CPU is never lost
    ended = []
    monkeypatch.setattr(encode.os, "_exit", ended.append)

    class Device:
        type = "cuda"

    step.loaded[0].runner.device = Device()
    monkeypatch.setattr(encode.torch.cuda, "synchronize", lambda _: None)
    step.check_device(ValueError())
    assert not ended

    def lost(_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(encode.torch.cuda, "synchronize", lost)
    step.check_device(ValueError())
    assert ended == [1]


def test_many_texts_that_the_tokenizer_cannot_take(tmp_path, model, monkeypatch):
    """It tells of one at a time, and is not asked as often as there are such texts."""
    texts = [f"`secret` {n}" if n % 3 == 0 else f"fine {n}" for n in range(240)]
    calls = []
    whole = tokenize.TokenizedOnce.encode_ragged

    def encode_ragged(self, texts, *more, **how):
        calls.append(len(texts))
        for place, text in enumerate(texts.to_pylist()):
            if "secret" in text:
                raise TokenizerError(place, f"PanicException: byte 1 is inside of {text}")
        return whole(self, texts, *more, **how)

    monkeypatch.setattr(tokenize.TokenizedOnce, "encode_ragged", encode_ragged)
    rows, errors = scored(tmp_path, model, texts, "several", rows=500)
    assert rows["row"].to_pylist() == [n for n in range(240) if n % 3]
    assert [(row["row"], row["code"]) for row in errors] == [(n, codes.TOKENIZER_ERROR) for n in range(0, 240, 3)]
    assert {row["message"] for row in errors} == {"PanicException: byte 1 is inside of"}
    assert sum(calls) < 40 * 240
