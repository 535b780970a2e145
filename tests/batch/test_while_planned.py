"""A run that is scored while it is planned has the rows of one that is planned first, however often it is stopped."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from tests.batch.direct import job_of, rows_of, run_directly
from tests.steps_here import here
from xlmr_ray.batch import plan, run, while_planned
from xlmr_ray.batch.input.readers.jsonl import JsonLines
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger import parts
from xlmr_ray.batch.ledger.parts import folder, part_keys
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.score import TooManyErrors
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import Interrupted, JobFailed

FILES, MINI = 12, "embedded:mini"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of lines, some of them broken, as are some lines."""
    where = tmp_path_factory.mktemp("in")
    for number in range(FILES):
        rows = [{"text": f"text {number} {row}", "lang": "en"} for row in range(20 + 9 * number)]
        lines = [json.dumps(row) for row in rows]
        if number % 4 == 1:
            lines[3] = "{"
        data = "\n".join(lines).encode()
        (where / f"{number:02}.jsonl.gz").write_bytes(gzip.compress(data))
    (where / "07.jsonl.gz").write_bytes(gzip.compress(data)[:-30])
    (where / "none.jsonl").write_bytes(b"")
    return where


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    run_directly(job(corpus, out))
    return all_rows(out)


def job(corpus, out, **more):
    return job_of(MINI, corpus, out, keep=["lang"], **more)


def all_rows(out):
    key = lambda row: (row["source"], row["row"])  # noqa: E731
    return [sorted(rows_of(out, errors=errors), key=key) for errors in (False, True)]


@pytest.fixture
def in_parts(monkeypatch):
    """Every job is one that takes long to plan, a part a file."""
    monkeypatch.setattr(plan, "LONG", 1)
    monkeypatch.setattr(parts, "EVERY", 0.0)


def launch(job):
    said = io.StringIO()
    with here():
        outcome = run.run_job(job, console=Console(file=said))
    return outcome, said.getvalue().splitlines()


@pytest.mark.usefixtures("in_parts")
def test_rows_are_those_of_a_run_that_is_planned_first(corpus, expected, tmp_path):
    outcome, said = launch(job(corpus, tmp_path / "out"))
    assert all_rows(tmp_path / "out") == expected
    assert outcome.published
    store = open_store(str(tmp_path / "out"))
    assert verify(store).ok
    assert not list(store.list(folder(outcome.manifest.run_id)))
    figures = outcome.figures
    # Files that cannot be read are shards, too; none was counted twice.
    assert figures.shards == figures.total_shards == outcome.manifest.shards
    assert figures.rows == figures.total_rows == outcome.manifest.rows_in + outcome.manifest.rows_lost
    assert (figures.rows_before, figures.shards_before, figures.planning) == (0, 0, "")
    assert said[0] == f"run {outcome.manifest.run_id}: {FILES + 1} files; scored as they are planned"
    assert any("files planned" in line and "about" in line for line in said if "docs/s" in line)
    assert not any("going on" in line for line in said)


@pytest.mark.usefixtures("in_parts")
def test_it_is_the_run_that_is_planned_at_once(corpus, tmp_path, monkeypatch):
    """Whichever way it was begun, the other launch goes on with it."""
    early = launch(job(corpus, tmp_path / "early"))[0].manifest
    monkeypatch.setattr(plan, "LONG", 1 << 40)
    late = launch(job(corpus, tmp_path / "late"))[0].manifest
    assert early.run_id == late.run_id
    assert early.plan_sha256 == late.plan_sha256
    assert [early.rows_ok, early.rows_error, early.rows_lost] == [late.rows_ok, late.rows_error, late.rows_lost]


@pytest.mark.parametrize("shards", [1, 4, 9])
def test_a_launch_goes_on_with_the_parts_that_are_there(corpus, expected, tmp_path, monkeypatch, in_parts, shards):
    """Also one that would cut the input otherwise, and one for which it is no long one."""
    out = tmp_path / "out"

    def stop(*_):
        nonlocal shards
        shards -= 1
        if shards < 0:
            raise KeyboardInterrupt

    free = held_up(monkeypatch)
    monkeypatch.setattr(while_planned, "follow_rows", follow_till(stop))
    with pytest.raises(Interrupted, match=r"of about \d+ shards .* the same command goes on from there"):
        launch(job(corpus, out))
    free.set()
    monkeypatch.undo()
    store = open_store(str(out))
    (name,) = store.folders("_runs/")
    monkeypatch.setattr(plan, "LONG", 1 << 40)
    content = job(corpus, out).model_dump(mode="json", exclude_unset=True)
    content["cluster"]["shard_rows"] = 7
    outcome, said = launch(check_job(content, "test"))
    assert outcome.manifest.run_id == name
    assert outcome.figures.shards_before > 0
    assert any("are committed already, going on from there" in line for line in said)
    assert all_rows(out) == expected
    assert verify(store).ok


def held_up(monkeypatch):
    """The tenth file is planned when the event is set."""
    free, plan_file = threading.Event(), JsonLines.plan

    def slow(self, source, *arguments, **options):
        if source.input.key.endswith("09.jsonl.gz"):
            free.wait(60)
        return plan_file(self, source, *arguments, **options)

    monkeypatch.setattr(JsonLines, "plan", slow)
    return free


def follow_till(check):
    def follow(run, rows, line, watch, good):
        return FOLLOW_ROWS(run, rows, line, watch, lambda: (good(), check()))

    return follow


FOLLOW_ROWS = while_planned.follow_rows


@pytest.mark.usefixtures("in_parts")
def test_too_many_errors_are_those_of_the_whole_input(corpus, tmp_path):
    """Not of what is planned so far; and nothing is published."""
    out = tmp_path / "out"
    with pytest.raises(TooManyErrors, match=r"rows are errors"):
        launch(job(corpus, out, max_fraction=0.001))
    assert current(open_store(str(out))) is None
    outcome, _ = launch(job(corpus, out))
    assert outcome.published


@pytest.mark.usefixtures("in_parts")
def test_what_planning_cannot_do_ends_the_launch(corpus, tmp_path, monkeypatch):
    def broken(*_arguments, **_options):
        raise JobFailed("the store is away")

    plan_file = JsonLines.plan

    def plan_or_fail(self, source, *arguments, **options):
        return (broken if source.input.key.endswith("09.jsonl.gz") else plan_file)(self, source, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "plan", plan_or_fail)
        with pytest.raises(JobFailed, match="the store is away"):
            launch(job(corpus, tmp_path / "out"))
    store = open_store(str(tmp_path / "out"))
    (name,) = store.folders("_runs/")
    assert list(part_keys(store, name))
    assert launch(job(corpus, tmp_path / "out"))[0].published


@pytest.mark.usefixtures("in_parts")
def test_parts_of_empty_files_only(corpus, expected, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("-a", "-b", "-c"):  # before all others
        (source / f"{name}.jsonl").write_bytes(b"")
    for file in corpus.glob("*.jsonl*"):
        (source / file.name).write_bytes(file.read_bytes())
    outcome, _ = launch(job(source, tmp_path / "out"))
    found, errors = all_rows(tmp_path / "out")
    assert len(found) == len(expected[0])
    assert len(errors) == len(expected[1]) + 3
    assert outcome.published


@pytest.mark.usefixtures("in_parts")
def test_nothing_to_read(tmp_path):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.jsonl").write_bytes(b"")
    from xlmr_ray.errors import UserError

    with pytest.raises(UserError, match=r"nothing to read: .*a.jsonl: zero bytes \(and 2 more files\)"):
        launch(job(tmp_path / "in", tmp_path / "out"))


COMMAND = """
import sys, time
from xlmr_ray.batch import plan
from xlmr_ray.batch.input import planning
from xlmr_ray.batch.ledger import parts
plan.LONG, parts.EVERY, whole = 1, 0.0, planning.plan_input
def never(one, *arguments, **options):
    while one.key.endswith("none.jsonl"):
        time.sleep(0.1)
    return whole(one, *arguments, **options)
planning.plan_input = never
from xlmr_ray.cli import main
main()
"""


def test_on_ray_with_a_driver_that_is_killed(corpus, expected, tmp_path):
    """While it plans, when something is committed; another launch does the rest."""
    out = tmp_path / "out"
    command = ["run", "text-classification", "--model", MINI, "--input", str(corpus), "--output", str(out)]
    for setting in ("input.keep=[lang]", "errors.max_fraction=1", "errors.empty=score"):
        command += ["--set", setting]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command], start_new_session=True, stderr=subprocess.DEVNULL
    ) as driver:
        until = time.monotonic() + 120
        while time.monotonic() < until and not list(out.glob("_runs/*/shards/*.json")):
            assert driver.poll() is None
            time.sleep(0.1)
        os.killpg(driver.pid, signal.SIGKILL)
    store = open_store(str(out))
    (name,) = store.folders("_runs/")
    assert list(part_keys(store, name))
    assert not (out / "_runs" / name / "plan.json").exists()
    outcome, _ = launch(job(corpus, out))
    assert outcome.manifest.run_id == name
    assert outcome.figures.shards_before > 0
    assert verify(store).ok
    assert all_rows(out) == expected
