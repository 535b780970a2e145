"""What `status` says, from the store alone."""

import io
import json
import time
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.batch.days import launch, whole, write
from tests.batch.runs import RUN, commit, create_plan, plan
from xlmr_ray.batch.ledger import status as module
from xlmr_ray.batch.ledger.lease import leased
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import record_key
from xlmr_ray.batch.ledger.status import published, status
from xlmr_ray.batch.observe.printing import print_status
from xlmr_ray.cli import app
from xlmr_ray.errors import UserError

OTHER = "fedcba9876543210"


def done(store, run=RUN, started=1.0):
    shards = plan(store, 3, run=run)
    for shard in shards:
        commit(store, shard, ok=4, bad=2 if shard == "00001" else 0, run=run)
    finish(store, run, shards)
    publish(store, run, started=started)


def printed(store, run=None):
    console = Console(width=200, file=io.StringIO())
    print_status(store, console, run)
    return console.file.getvalue()


def test_finished_and_unfinished_runs(store):
    assert list(status(store)) == []
    assert published(store) is None
    done(store)
    plan(store, 5, run=OTHER)
    commit(store, "00000", ok=3, bad=1, run=OTHER)
    commit(store, "00002", ok=1, run=OTHER)
    first, running = status(store)
    assert (first.run_id, first.planned, first.done, first.rows, first.rows_error) == (RUN, 3, 3, 14, 2)
    assert first.finished
    assert first.published
    assert first.errors == {"empty_text": 2}
    assert (running.run_id, running.planned, running.done, running.rows_error) == (OTHER, 5, 2, 1)
    assert running.errors == {"empty_text": 1}
    assert not running.finished
    assert not running.published
    assert running.driver is None
    assert abs(running.last_commit - time.time()) < 60


def test_a_run_just_planned_and_one_without_a_plan(local):
    plan(local, 2)
    (only,) = status(local)
    assert (only.planned, only.done, only.last_commit, only.seconds_left) == (2, 0, None, None)
    local.put("_runs/x/shards/readme.txt", b"")
    assert [one.planned for one in status(local)] == [2, None]


def test_one_run_alone_and_one_that_is_not_there(local):
    done(local)
    plan(local, 1, run=OTHER)
    assert [one.run_id for one in status(local, OTHER)] == [OTHER]
    with pytest.raises(UserError, match=f"has no run x; its runs: {RUN}, {OTHER}"):
        list(status(local, "x"))


class Later:
    """A store whose commits were made so many seconds after each other."""

    def __init__(self, store, seconds=60):
        self.store, self.seconds = store, seconds

    def __getattr__(self, name):
        return getattr(self.store, name)

    def list(self, prefix):
        for place, entry in enumerate(self.store.list(prefix)):
            yield replace(entry, modified=1000.0 + self.seconds * place)


def test_rate_and_time_left_come_from_the_times_of_the_commits(local):
    lines = [{"id": f"{i:05}", "rows": 120} for i in range(20)]
    create_plan(local, RUN, {"job": "test", "shards": lines})
    for i in range(4):
        commit(local, f"{i:05}")
    with leased(local, RUN):
        (one,) = status(Later(local))
        assert one.driver is not None
        assert (one.rows, one.rows_done) == (2400, 480)
        assert one.rate == pytest.approx(120 / 60)  # what was there at the start of the window is not counted
        assert one.seconds_left == pytest.approx(1920 / 2)
        text = printed(Later(local))
        assert "driven by process" in text
        assert "2.0 rows/s over the 10 minutes before its last commit, 0:16:00 left" in text
        (one,) = status(Later(local, 10))  # the first minute: encoders that start together commit together
        assert (one.rate, one.seconds_left) == (0, None)
    assert "nobody drives it; launch the job to go on" in printed(local)


def test_records_are_not_read_but_those_with_errors(local, monkeypatch):
    plan(local, 30)
    for i in range(20):
        commit(local, f"{i:05}", bad=1 if i % 10 == 0 else 0)
    read = []
    get = type(local).get

    def counted(self, key):
        read.append(key)
        return get(self, key)

    monkeypatch.setattr(type(local), "get", counted)
    (one,) = status(local)
    assert sorted(key for key in read if "/shards/" in key) == [record_key(RUN, "00000"), record_key(RUN, "00010")]
    assert (one.rows_error, one.all_errors) == (2, True)
    monkeypatch.setattr(module, "MOST_RECORDS", 1)
    (one,) = status(local)
    assert (one.rows_error, one.all_errors) == (1, False)
    assert "1+" in printed(local)


def test_a_chain_and_what_it_could_not_read(local, tmp_path):
    folder = tmp_path / "corpus"
    write(folder, "a.jsonl", ["a", "b", "c"])
    (folder / "dead.parquet").write_bytes(b"no parquet")
    whole(local, folder)
    write(folder, "b.jsonl", ["d"])
    whole(local, folder)
    first, second = status(local)
    assert (first.in_table, first.published) == (True, False)
    assert (second.in_table, second.published) == (True, True)
    assert published(local).table.inputs == 3
    text = printed(local)
    assert f"published: one table, the last run {second.run_id}" in text
    assert "3 inputs by 2 runs, rows 4 + errors 1" in text
    assert "in the table" in text
    (first,) = status(local, first.run_id)
    assert first.dead == ((str(folder / "dead.parquet"), "wrong_format"),)
    assert "files not read: " in printed(local, first.run_id)


def test_command_line(local, tmp_path):
    done(local)
    out = str(tmp_path / "out")
    shown = CliRunner().invoke(app, ["status", out])
    assert shown.exit_code == 0
    assert f"published: run {RUN}" in shown.stdout
    lines = CliRunner().invoke(app, ["status", out, "--json"]).stdout.splitlines()
    assert [json.loads(line)["run_id"] for line in lines] == [RUN]


def test_an_unfinished_chain_shows_its_driver_and_progress(local, tmp_path):
    folder = tmp_path / "corpus"
    write(folder, "a.jsonl", [str(i) for i in range(10)])
    steps = launch(local, folder)
    for _ in range(4):
        next(steps)
    (one,) = status(local)
    assert (one.planned, one.done, one.rows, one.rows_done) == (5, 2, 10, 4)
