"""Rows that raise, hang or kill: one error row each, and all others as if those were not there."""

import gzip
import json
import random
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.batch.stages.deadly import DeadlyEncode, DeadlyTokenizeEach
from tests.batch.test_run import job, result
from tests.models import save_classifier
from xlmr_ray import JobFailed
from xlmr_ray.batch import run, stream
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.stages import encode
from xlmr_ray.batch.stages.suspects import ALONE, MOST_DEATHS, WARY, RowRange, Suspects, piece_edges
from xlmr_ray.batch.store.open import open_store


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "out"))


class Died(BaseException):
    """The end of a process."""


def survive(store, count, deadly, *, step="tokenize", timeout=None):
    """What becomes of a shard of so many rows, some `deadly`: the places that pass, those that fail with their codes,
    and how many processes it took.
    """
    for lives in range(1, 1000):
        actor = "" if lives == 1 else "a"  # the first incarnation does not know what will come
        known = Suspects(store, step, timeout=timeout, actor=actor)
        passed, failed = [], {}
        try:
            with known.shard("s"):
                with known.reading():
                    pass
                for piece in known.pieces(count):
                    if piece.failure is not None:
                        failed[piece.start] = piece.failure[0]
                        continue
                    with known.trying(piece):
                        if deadly & set(range(piece.start, piece.stop)):
                            raise Died
                    passed += range(piece.start, piece.stop)
        except Died:
            continue
        return passed, failed, lives
    raise AssertionError("no end")


@pytest.mark.parametrize("count", [1, 2, 7, 16, 100, 8192])
@pytest.mark.parametrize("bad", [0, 1, 3])
def test_deadly_rows_are_found_and_no_others(store, count, bad):
    deadly = set(random.sample(range(count), min(bad, count)))
    passed, failed, lives = survive(store, count, deadly)
    assert passed == [row for row in range(count) if row not in deadly]
    assert failed == dict.fromkeys(deadly, "killed_worker")
    assert not list(store.list(".tmp/suspects/"))
    assert lives <= 3 + len(deadly) * 7  # of 8,192 rows, one is found after five cuts in eight and two deaths alone


def test_one_death_with_a_row_alone_is_chance(store):
    known = Suspects(store, "encode", timeout=None, actor="a")
    with pytest.raises(Died), known.shard("s"), known.trying(known.pieces(1)[0]):
        raise Died
    again = Suspects(store, "encode", timeout=None, actor="a")
    with again.shard("s"):
        (piece,) = again.pieces(1)
        assert piece.failure is None


def dies(store, shard, *, step="tokenize", actor="a", rows=1):
    known = Suspects(store, step, timeout=None, actor=actor)
    with pytest.raises(Died), known.shard(shard), known.trying(known.pieces(rows)[0]):
        raise Died


def test_notes_of_other_shards_steps_and_actors_say_nothing(store):
    for shard, step, actor in (("s", "encode", "a"), ("t", "tokenize", "a"), ("s", "tokenize", "b")):
        for _ in range(3):
            dies(store, shard, step=step, actor=actor)
    known = Suspects(store, "tokenize", timeout=None, actor="a")
    with known.shard("s"):
        assert known.pieces(1) == [RowRange(0, 1)]
    with known.shard("t"):
        assert known.pieces(1)[0].failure


def test_a_shard_is_remembered_while_others_are_done_again(store):
    """A restarted actor begins its pack anew: shards that pass come before the one that kills."""
    for _ in range(ALONE):
        known = Suspects(store, "tokenize", timeout=None, actor="a")
        for passing in ("p", "q"):
            with known.shard(passing), known.trying(known.pieces(5)[0]):
                assert known.pieces(5) == [RowRange(0, 5)]
        with pytest.raises(Died), known.shard("s"), known.trying(known.pieces(1)[0]):
            raise Died
    known = Suspects(store, "tokenize", timeout=None, actor="a")
    with known.shard("p"):
        assert known.pieces(5) == [RowRange(0, 5)]
    with known.shard("s"):
        assert known.pieces(1)[0].failure[0] == "killed_worker"


def test_a_death_between_shards_is_nobodys(store):
    for _ in range(5):
        known = Suspects(store, "encode", timeout=None, actor="a")
        with known.shard("s"), known.trying(known.pieces(1)[0]):
            assert known.pieces(1) == [RowRange(0, 1)]


def test_an_actor_that_never_died_writes_nothing(store, monkeypatch):
    monkeypatch.setattr(type(store), "put", lambda *_: pytest.fail("a note"))
    known = Suspects(store, "encode", timeout=None)
    with known.shard("s"), known.reading():
        assert [(piece.start, piece.stop) for piece in known.pieces(8192)] == [(0, 8192)]


def test_after_some_shards_an_actor_is_no_longer_wary(store):
    known = Suspects(store, "encode", timeout=None, actor="a")
    for number in range(WARY):
        assert (known.note is None) == (number == 0)
        with known.shard(f"s{number}"), known.trying(RowRange(0, 16)):
            assert list(store.list(".tmp/suspects/"))
    with known.shard("next"), known.trying(RowRange(0, 16)):
        assert not list(store.list(".tmp/suspects/"))


def test_a_shard_that_dies_whatever_is_cut_ends_the_job(store):
    with pytest.raises(JobFailed, match=rf"shard s: the process that should encode it died {MOST_DEATHS + 1} times"):
        survive(store, 5000, set(range(5000)), step="encode")


def test_a_reading_that_kills_is_told_apart(store):
    for _ in range(ALONE):
        known = Suspects(store, "tokenize", timeout=None, actor="a")
        with pytest.raises(Died), known.shard("s"), known.reading():
            raise Died
    known = Suspects(store, "tokenize", timeout=None, actor="a")
    with known.shard("s"):
        code, message = known.unreadable()
        assert code == "killed_worker"
        assert "tokenize" in message


HANGS = """
import re
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.batch.stages.suspects import Suspects
known = Suspects(open_store({folder!r}), "tokenize", timeout=0.5, actor={actor!r})
with known.shard("s"):
    for piece in known.pieces(1):
        if piece.failure:
            print(*piece.failure)
            break
        with known.trying(piece):
            re.match("(a+)+$", "a" * 60 + "b")
"""


def lives(tmp_path, actor):
    """One incarnation that works on a row that holds the Python lock for ever."""
    program = HANGS.format(folder=str(tmp_path), actor=actor)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 7), (5, 13), (0, 8192), (17, 19)])
def test_edges_cut_all_of_a_range(start, stop):
    cuts = piece_edges(start, stop)
    assert (cuts[0], cuts[-1]) == (start, stop)
    assert len(cuts) == min(8, stop - start) + 1
    assert cuts == sorted(set(cuts))


def test_the_watch_ends_a_process_that_no_thread_of_python_could(tmp_path):
    done = lives(tmp_path, "")
    assert done.returncode == 1
    assert "Timeout (0:00:00.5" in done.stderr  # where it hung is in the log of the worker


def test_what_hangs_is_told_from_what_kills(tmp_path):
    actor = secrets.token_hex(8)
    assert [lives(tmp_path, actor).returncode for _ in range(ALONE)] == [1] * ALONE
    done = lives(tmp_path, actor)
    assert done.returncode == 0
    assert done.stdout == "timed_out not done in errors.timeout, 0.5 seconds, alone in its process\n"
    assert "re.py" in done.stderr or "line" in done.stderr
    Path(tempfile.gettempdir(), f"xlmr-ray-{actor}-late").unlink()  # of a process that ended before its next work


def test_the_watch_ends_with_the_piece(tmp_path):
    program = f"""
import time
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.batch.stages.suspects import RowRange, Suspects
known = Suspects(open_store({str(tmp_path)!r}), "tokenize", timeout=0.3)
for error in (None, ValueError()):
    try:
        with known.shard("s"), known.trying(RowRange(0, 1)):
            if error:
                raise error
    except ValueError:
        pass
time.sleep(1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def corpus(path, special):
    """Forty rows, some of them special: place -> text. Gives the path."""
    texts = [special.get(place, f"Document number {place} of a quiet corpus") for place in range(40)]
    lines = "".join(json.dumps({"id": f"r{place}", "text": text}) + "\n" for place, text in enumerate(texts))
    path.write_bytes(gzip.compress(lines.encode()))  # which one tokenizer reads, and begins anew where it dies
    return path


def compare(model, tmp_path, monkeypatch, special, *, timeout):
    """A run over the corpus with some special rows, against one without: the codes of the special ones, nothing else
    of them, and all others' answers.
    """

    def run_over(name, texts):
        path, out = corpus(tmp_path / f"{name}.jsonl.gz", texts), tmp_path / name
        errors = {"max_fraction": 0.5, "timeout": timeout}
        run.run_job(job(model, path, out, rows=4, input={"path": str(path), "id": "id"}, errors=errors), quiet=True)
        return out

    clean = run_over("clean", {})
    monkeypatch.setattr(stream, "TokenizeEach", DeadlyTokenizeEach)
    monkeypatch.setattr(encode, "Encode", DeadlyEncode)
    out = run_over("out", {place: text for place, (text, _) in special.items()})
    errors = result(out, "errors")
    assert dict(zip(errors["row"].to_pylist(), errors["code"].to_pylist(), strict=True)) == {
        place: code for place, (_, code) in special.items()
    }
    assert not any(text in message for text, _ in special.values() for message in errors["message"].to_pylist())
    rows = result(out)
    undisturbed = [row for row in range(40) if row not in special]
    assert rows["row"].to_pylist() == undisturbed
    assert rows.drop_columns("source").equals(result(clean).drop_columns("source").take(undisturbed))
    assert verify(open_store(str(out))).ok
    assert not list(open_store(str(out)).list(".tmp/suspects/"))


def test_a_run_with_rows_that_raise_and_kill(ray_session, model, tmp_path, monkeypatch):
    special = {
        8: ("RAISE in tokenize", "tokenizer_error"),
        9: ("PANIC in tokenize", "tokenizer_error"),
        17: ("EXIT in encode", "killed_worker"),
        23: ("RAISE in encode", "scoring_error"),
        24: ("FULL in encode", "out_of_memory"),
        34: ("PANIC in encode", "scoring_error"),
    }
    compare(model, tmp_path, monkeypatch, special, timeout=600)


@pytest.mark.slow
def test_a_run_with_rows_that_hang(ray_session, model, tmp_path, monkeypatch):
    special = {
        3: ("HANG in encode", "timed_out"),
        20: ("HANG in tokenize", "timed_out"),
        21: ("KILL in tokenize", "killed_worker"),
    }
    compare(model, tmp_path, monkeypatch, special, timeout=10)
