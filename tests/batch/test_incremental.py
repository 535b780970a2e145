"""Runs upon runs: the table is what the files say, through additions, replacements, deletions, crashes and launches at
once.
"""

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.batch.days import COLUMNS, IDENTITY, commit_one, launch, seen, truth, whole, write
from xlmr_ray.batch.identity import run_id
from xlmr_ray.batch.incremental import compare
from xlmr_ray.batch.input.file import InputFile
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.json_by_line import Damaged
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import CURRENT, current, publish
from xlmr_ray.batch.ledger.record import planned_shards
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.batch.ledger.snapshot import ERRORS, Head, read_head, table_key, table_problems
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.printing import print_run_summary
from xlmr_ray.batch.plan import write_plan
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError


@pytest.fixture
def folder(tmp_path):
    """The corpus on the first day: five rows in two files."""
    folder = tmp_path / "corpus"
    write(folder, "a.jsonl", ["a0", "a1", "a2"])
    write(folder, "b.jsonl", ["b0", "b1"])
    return folder


def planned(store, run):
    return list(planned_shards(store, run))


def sound(store):
    """Every run of the published chain has the table that its parts make."""
    return [problem for run in current(store).runs for problem in table_problems(store, run)] == []


def test_three_days(store, folder):
    (first,) = whole(store, folder)
    assert str(first.changes) == "inputs: 2 new, 0 scored before"
    assert seen(store) == truth(folder)

    write(folder, "c.jsonl", ["c0", "c1", "c2"])
    (second,) = whole(store, folder)
    assert {one.key for one in second.plan.shards.inputs} == {str(folder / "c.jsonl")}
    assert str(second.changes) == "inputs: 1 new, 2 scored before"
    assert seen(store) == truth(folder)

    write(folder, "a.jsonl", ["A0", "A1"])
    (third,) = whole(store, folder)
    assert str(third.changes) == "inputs: 0 new, 1 replaced (their old rows go), 2 scored before"
    assert seen(store) == truth(folder)
    assert current(store).runs == tuple(one.plan.run_id for one in (first, second, third))
    head = read_head(store, third.plan.run_id)
    assert (head.inputs, head.added, head.replaced, head.rows_ok) == (3, 0, 1, 7)
    assert sound(store)


def test_verify_holds_the_table_against_what_it_is_made_of(local, folder):
    whole(local, folder)
    write(folder, "a.jsonl", ["A0"])
    (second,) = whole(local, folder)
    first, last = current(local).runs
    assert all(verify(local, run).ok for run in (first, last))
    data = local.get(table_key(last))[0]
    local.put(table_key(last), local.get(table_key(first))[0])
    assert verify(local).problems == (
        f"{local.url(table_key(last))}: its sums are not those of the plan, the manifest and the table before",
    )
    table = pq.read_table(pa.BufferReader(data))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table.slice(1))
        writer.add_key_value_metadata({"xlmr_ray": json.dumps(asdict(read_head_of(data)))})
    local.put(table_key(last), sink.getvalue().to_pybytes())
    assert "does not agree with the plan, the manifest and the table before" in verify(local).problems[0]
    local.put(table_key(last), b"PAR1")
    assert "is damaged" in verify(local).problems[0]
    with pytest.raises(Damaged, match=r"table\.parquet: is damaged"):
        seen(local)
    local.delete(table_key(last))
    assert "table.parquet: is missing" in verify(local).problems[0]
    with pytest.raises(JobFailed, match=r"table\.parquet: is missing"):
        seen(local)
    local.put(table_key(last), data)
    assert verify(local).ok
    assert second.plan.run_id == last


def read_head_of(data):
    return Head(**json.loads(pq.read_metadata(pa.BufferReader(data)).metadata[b"xlmr_ray"]))


def test_nothing_new_publishes_nothing(store, folder):
    whole(store, folder)
    before = store.get(CURRENT)
    keys = [entry.key for entry in store.list("")]
    (found,) = whole(store, folder, started=99.0)
    assert found.plan is None
    assert str(found.changes) == "inputs: 0 new, 2 scored before"
    assert store.get(CURRENT) == before
    assert [entry.key for entry in store.list("")] == keys


def test_deleted_inputs_stay_or_go(store, folder):
    whole(store, folder)
    (folder / "b.jsonl").unlink()
    (found,) = whole(store, folder)
    assert found.plan is None
    assert "1 not there any more (their rows stay; input.deleted: drop takes them out)" in str(found.changes)
    assert seen(store) == {**truth(folder), ("b.jsonl", 0): "b0", ("b.jsonl", 1): "b1"}
    (found,) = whole(store, folder, drop=True)
    assert "1 not there any more (their rows go)" in str(found.changes)
    assert planned(store, found.plan.run_id) == []
    assert seen(store) == truth(folder)
    assert read_head(store, found.plan.run_id).dropped == 1
    assert whole(store, folder, drop=True)[0].plan is None
    write(folder, "b.jsonl", ["b0", "b1"])
    whole(store, folder, drop=True)
    assert seen(store) == truth(folder)
    assert sound(store)


def test_a_crashed_day_is_finished_first_and_not_done_again(store, folder):
    whole(store, folder)
    write(folder, "c.jsonl", ["c0", "c1", "c2", "c3"])
    list(islice(launch(store, folder), 3))  # listed, planned, one shard of two committed
    write(folder, "d.jsonl", ["d0"])
    crashed, new = whole(store, folder)
    assert crashed.changes is None
    done = list(committed(store, crashed.plan.run_id))
    assert [record.shard for record in done] == planned(store, crashed.plan.run_id)
    assert [Path(one.key).name for one in new.plan.shards.inputs] == ["d.jsonl"]
    assert seen(store) == truth(folder)
    assert sound(store)


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_every_step(local, folder, step):
    whole(local, folder)
    write(folder, "c.jsonl", ["c0", "c1", "c2"])
    write(folder, "b.jsonl", ["B"])
    list(islice(launch(local, folder), step))
    whole(local, folder)
    assert seen(local) == truth(folder)
    assert sound(local)


def test_an_input_replaced_while_its_run_was_unfinished(store, folder):
    list(islice(launch(store, folder), 3))  # the first shard of a
    write(folder, "a.jsonl", ["A0", "A1", "A2", "A3"])
    crashed, new = whole(store, folder)
    assert crashed.withdrawn == {str(folder / "a.jsonl")}
    assert read_head(store, crashed.plan.run_id).withdrawn == 1
    assert [Path(one.key).name for one in new.plan.shards.inputs] == ["a.jsonl"]
    assert seen(store) == truth(folder)
    assert sound(store)


def test_an_input_deleted_while_its_run_was_unfinished(store, folder):
    list(islice(launch(store, folder), 3))
    (folder / "a.jsonl").unlink()
    whole(store, folder)
    assert seen(store) == truth(folder)
    assert sound(store)


def test_a_replacement_that_was_not_finished_leaves_the_old_rows_until_the_next_is(store, folder):
    whole(store, folder)
    old = truth(folder)
    write(folder, "a.jsonl", ["A0", "A1", "A2"])
    write(folder, "c.jsonl", ["c0"])
    list(islice(launch(store, folder), 3))
    write(folder, "a.jsonl", ["AA"])
    for step in launch(store, folder):
        if step == "published":
            break
    rows = seen(store)
    assert {key: text for key, text in rows.items() if key[0] != "c.jsonl"} == old
    assert rows["c.jsonl", 0] == "c0"
    whole(store, folder)
    assert seen(store) == truth(folder)
    assert sound(store)


def test_a_launch_that_lists_another_folder_finishes_what_was_begun(store, folder, tmp_path):
    list(islice(launch(store, folder), 3))
    other = tmp_path / "other"
    write(other, "z.jsonl", ["z0"])
    crashed, new = whole(store, other)
    assert not crashed.withdrawn
    assert seen(store) == {**truth(folder), **truth(other)}
    assert new.changes.gone == tuple(str(folder / name) for name in ("a.jsonl", "b.jsonl"))


def mixed(first, second, order):
    """Two launches step by step, in the order given, then to their ends."""
    pair = [first, second]
    for which in order:
        next(pair[which], None)
    for one in pair:
        for _ in one:
            pass


@pytest.mark.parametrize("order", [[0, 1] * 20, [0, 0, 1, 1, 1], [0] * 5 + [1] * 5, [1, 0, 0, 0, 0, 0, 1, 1]])
def test_two_launches_at_once(store, folder, order):
    whole(store, folder)
    write(folder, "c.jsonl", ["c0", "c1", "c2"])
    write(folder, "a.jsonl", ["A0", "A1"])
    mixed(launch(store, folder, started=1.0), launch(store, folder, started=2.0), order)
    assert seen(store) == truth(folder)
    assert len(current(store).runs) == 2
    assert sound(store)


def test_two_launches_that_have_listed_other_things(store, folder):
    late, early = launch(store, folder, started=1.0), launch(store, folder, started=2.0)
    next(late)  # has listed two files
    write(folder, "a.jsonl", ["A"])
    write(folder, "c.jsonl", ["c0"])
    for _ in early:
        pass
    first = current(store).runs
    for _ in late:  # its list is old: it ends when it looks at a.jsonl
        pass
    whole(store, folder, started=3.0)
    assert seen(store) == truth(folder)
    assert current(store).runs[: len(first)] == first
    assert sound(store)


def test_another_model_starts_from_nothing_and_readers_switch_when_it_is_published(store, folder):
    whole(store, folder)
    chain = current(store).runs
    other = {"model": "second"}
    steps = launch(store, folder, identity=other, started=1.0)
    for step in steps:
        assert current(store).runs == chain, step
        if step == "finished":
            break
    for _ in steps:
        pass
    assert len(current(store).runs) == 1
    assert set(current(store).runs).isdisjoint(chain)
    assert seen(store) == truth(folder)
    # Back to the first model: nothing is scored again, and its table is the published one.
    (found,) = whole(store, folder, started=2.0)
    assert found.plan is None
    assert current(store).runs == chain


def test_a_late_end_of_the_old_model_does_not_call_readers_back(store, folder):
    whole(store, folder)
    write(folder, "c.jsonl", ["c0"])
    old = launch(store, folder, started=1.0)
    next(old), next(old)
    whole(store, folder, identity={"model": "second"}, started=2.0)
    new = current(store)
    for _ in old:
        pass
    assert current(store).run_id == new.run_id
    (found,) = whole(store, folder, started=3.0)
    assert found.plan is None  # what it has done late was not lost
    assert seen(store) == truth(folder)


def test_files_that_cannot_be_read_and_files_without_rows(store, folder):
    (folder / "dead.parquet").write_bytes(b"no parquet")
    (folder / "blank.jsonl").write_bytes(b"\n\n")
    whole(store, folder)
    assert seen(store, ERRORS) == {("dead.parquet", -1): "wrong_format"}
    assert whole(store, folder)[0].plan is None
    (folder / "dead.parquet").unlink()
    write(folder, "blank.jsonl", ["now it has one"])
    whole(store, folder, drop=True)
    assert seen(store, ERRORS) == {}
    assert seen(store) == truth(folder)
    assert sound(store)


def test_kept_columns_have_the_types_that_they_had_on_the_first_day(local, folder):
    whole(local, folder)
    pq.write_table(pa.table({"id": ["x"], "lang": [7], "text": ["x"]}), folder / "c.parquet")
    with pytest.raises(UserError, match=r"'lang' is string in .*/data/.* and int64 in .*c\.parquet, which do not go"):
        whole(local, folder, strict=True)
    nothing = pa.table({"id": ["x"], "lang": pa.nulls(1), "text": ["x"]})
    pq.write_table(nothing, folder / "c.parquet")
    whole(local, folder, strict=True)
    assert ("c.parquet", 0) in seen(local)
    assert sound(local)


def test_a_full_run_of_the_same_job_is_a_table_to_go_on_from(local, folder):
    inputs = find_inputs(str(folder)).inputs
    plan = write_plan(local, {"run_id": "f" * 16, "job": "full"}, inputs, COLUMNS, shard_rows=2)
    for shard in plan.shards:
        commit_one(local, plan.run_id, shard)
    finish(local, plan.run_id, plan.ids())
    publish(local, plan.run_id, started=1.0, job=run_id(IDENTITY))
    write(folder, "c.jsonl", ["c0"])
    (found,) = whole(local, folder, started=2.0)
    assert [Path(one.key).name for one in found.plan.shards.inputs] == ["c.jsonl"]
    assert current(local).runs == (plan.run_id, found.plan.run_id)
    assert seen(local) == truth(folder)
    assert sound(local)


def test_size_and_etag_tell_a_replaced_input():
    def one(key, size, etag):
        return InputFile(key, "jsonl", "", size, etag)

    known = {"a": (1, "x"), "b": (1, "x"), "c": (1, "x"), "gone": (1, "x")}
    listed = [one("a", 1, "x"), one("b", 2, "x"), one("c", 1, "y"), one("d", 1, "x")]
    changes = compare(known, listed, drop=False)
    assert [found.key for found in changes.todo] == ["b", "c", "d"]
    assert changes.replaced == ("b", "c")
    assert changes.gone == ("gone",)
    assert changes.same == 1
    assert not compare({"gone": (1, "x")}, [], drop=False).any
    assert compare({"gone": (1, "x")}, [], drop=True).any


NAMES = ["a.jsonl", "b.jsonl", "c.jsonl"]
EVENTS = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 5)),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
    st.tuples(st.just("step"), st.integers(0, 1), st.integers(1, 6)),
    st.tuples(st.just("crash"), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(EVENTS, max_size=25), st.booleans())
def test_whatever_happens_the_table_is_what_the_files_say(events, drop):
    """Files come, change and go while two drivers start, go on and crash: after one more launch, reader and files agree
    row by row; and at every moment no row is seen twice.
    """
    place = Path(tempfile.mkdtemp())
    try:
        store, folder = open_store(str(place / "out")), place / "corpus"
        folder.mkdir()
        drivers = [launch(store, folder, drop=drop), launch(store, folder, drop=drop)]
        gone, version = {}, 0
        for kind, *what in events:
            if kind == "write":
                version += 1
                write(folder, what[0], [f"{what[0]} {version} {i}" for i in range(what[1])])
            elif kind == "delete":
                (folder / what[0]).unlink(missing_ok=True)
            elif kind == "step":
                list(islice(drivers[what[0]], what[1]))
            if kind in ("crash", "step") and (kind == "crash" or next(drivers[what[0]], None) is None):
                drivers[what[0]] = launch(store, folder, drop=drop)
            seen(store)
        write(folder, "last.jsonl", ["so that there is something to list"])
        whole(store, folder, drop=drop)
        rows, wanted = seen(store), truth(folder)
        # What is kept of deleted files is whole files, in one version each.
        gone = {key: text for key, text in rows.items() if not (folder / key[0]).exists()}
        assert {key: text for key, text in rows.items() if key not in gone} == wanted
        assert not (drop and gone)
        for name in {key[0] for key in gone}:
            texts = [text for key, text in gone.items() if key[0] == name]
            assert len({text.rpartition(" ")[0] for text in texts}) == 1
        assert sound(store)
    finally:
        shutil.rmtree(place)


# Whole launches


def test_three_days_of_a_job(steps_here, tmp_path, capsys):
    """Files are added, one is replaced, and the job is launched twice at once: each row once, as the files are now."""
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write(folder, "a.jsonl", ["Hello world", "Guten Morgen"])
    content = {
        "model": "embedded:mini",
        "input": {"path": str(folder), "id": "id", "keep": ["text"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(out)},
        "incremental": True,
    }
    job = check_job(content, "test")
    first = run_job(job, quiet=True)
    write(folder, "b.jsonl", ["Buenos días", "Bonjour", "Salut"])
    second = run_job(job, quiet=True)
    assert (second.manifest.rows_in, second.published) == (3, True)
    assert second.manifest.run_id != first.manifest.run_id
    write(folder, "a.jsonl", ["Доброе утро"])
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run_job(job, quiet=True), range(2)))
    assert {one.manifest.run_id for one in both} == {both[0].manifest.run_id}
    assert sum(one.figures.rows for one in both) == 1
    store = open_store(str(out))
    assert seen(store) == truth(folder)
    assert len(current(store).runs) == 3
    assert sound(store)
    again = run_job(job, quiet=True)
    assert again.figures.shards == 0
    print_run_summary(again, Console())
    said = capsys.readouterr().out
    assert said.startswith("nothing is new; inputs: 0 new, 2 scored before")
    assert said.count("\n") == 1
    assert pa.concat_tables(pq.read_table(file) for file in result_files(str(out)))["label"].null_count == 0


def test_another_option_of_the_task_is_another_job(steps_here, tmp_path):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write(folder, "a.jsonl", ["Hello world", "Guten Morgen"])
    runs = []
    for top_k in (1, 2, 1):
        content = {
            "input": {"path": str(folder), "keep": ["text"]},
            "tasks": [{"task": "text-classification", "top_k": top_k}],
            "output": {"path": str(out)},
            "incremental": True,
        }
        runs.append(run_job(check_job(content, "test"), quiet=True))
        assert current(open_store(str(out))).run_id == runs[-1].manifest.run_id
    assert [one.figures.rows for one in runs] == [2, 2, 0]
    assert runs[0].manifest.run_id == runs[2].manifest.run_id
