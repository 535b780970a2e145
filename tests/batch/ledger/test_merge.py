"""Merging the published table's small files: readers see each row once, as before, whenever it is broken off, and the
next day's run builds on it.
"""

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.days import launch, seen, truth, whole, write
from tests.batch.ledger.test_record import Crash, Crashing
from xlmr_ray.batch.ledger import merge, merged
from xlmr_ray.batch.ledger.merge import compact, merge_table
from xlmr_ray.batch.ledger.merged import all_merged, merged_table_key
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.snapshot import DATA, read_head, table_files
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "corpus"
    write(folder, "a.jsonl", [f"a{at}" for at in range(9)])
    write(folder, "b.jsonl", ["b0", "b1", "b2"])
    write(folder, "c.jsonl", ["c0"])
    return folder


def sound(store):
    """No run of the table has a problem."""
    return [problem for run in current(store).runs for problem in verify(store, run).problems] == []


def files(store):
    return [file.key for file in table_files(store, current(store).run_id, DATA)]


def test_small_files_become_one_and_the_old_ones_go(store, folder):
    whole(store, folder)
    before = files(store)
    assert len(before) == 8
    found = compact(store)
    assert (found.before, found.after) == (8, 1)
    assert len(files(store)) == 1
    assert seen(store) == truth(folder)
    assert sound(store)
    table = pq.read_table(pa.BufferReader(store.get(files(store)[0])[0]))
    places = list(zip(table["source"].to_pylist(), table["row"].to_pylist(), strict=True))
    assert places == sorted(places)
    assert compact(store).after == 1  # nothing more to do
    assert sweep(store) == []  # somebody may read them yet
    assert {entry.key for entry in sweep(store, older_than=-60)} == set(before)
    assert seen(store) == truth(folder)
    assert sound(store)


def test_nothing_published(local):
    with pytest.raises(UserError, match="nothing is published there"):
        compact(local)


def test_the_next_days(store, folder):
    """An input of a merged file is replaced: what is left of it is written anew, before the table names it."""
    whole(store, folder)
    compact(store)
    write(folder, "a.jsonl", ["A0", "A1"])
    write(folder, "d.jsonl", ["d0", "d1", "d2"])
    whole(store, folder)
    assert seen(store) == truth(folder)
    assert sound(store)
    assert len(files(store)) == 4  # b and c, then a and d
    sweep(store, older_than=-60)
    assert seen(store) == truth(folder)
    assert sound(store)
    assert read_head(store, current(store).run_id).files == 4
    assert compact(store).after == 1
    (folder / "c.jsonl").unlink()
    write(folder, "e.jsonl", ["e0"])
    whole(store, folder, drop=True)
    assert seen(store) == truth(folder)
    (folder / "b.jsonl").unlink()
    whole(store, folder)  # whose rows stay
    assert {name for name, _ in seen(store)} == {"a.jsonl", "b.jsonl", "d.jsonl", "e.jsonl"}
    compact(store)
    sweep(store, older_than=-60)
    assert sound(store)
    assert len(seen(store)) == len(truth(folder)) + 3


@pytest.mark.parametrize("after", [False, True])
def test_broken_off_at_any_step(store, folder, monkeypatch, after):
    """What is there then is what was there before, or all of it merged; and the next one ends it."""
    monkeypatch.setattr(merge, "ENOUGH", 4000)  # some groups
    whole(store, folder)
    wanted = truth(folder)
    for step in range(1, 100):
        try:
            compact(Crashing(store, step, after))
        except Crash:
            assert seen(store) == wanted
            assert sound(store)
            sweep(store)
        else:
            break
    assert step >= 6
    assert len(files(store)) < 8
    assert seen(store) == wanted
    sweep(store, older_than=-60)
    assert not [entry.key for entry in store.list("data/")]
    named = [one.file.key for one in all_merged(store, current(store).run_id)]
    assert sorted(entry.key for entry in store.list("merged/")) == sorted(named)
    assert seen(store) == wanted
    assert sound(store)


def test_readers_never_see_the_small_ones(store, folder):
    """Merged as part of a launch, the first day's and the next one's table is published with merged files."""
    for day in range(2):
        write(folder, f"day-{day}.jsonl", [f"{day}.{at}" for at in range(7)])
        seen_before = seen(store)
        for _ in launch(store, folder, merge=partial(merge_table, store)):
            assert seen(store) in (seen_before, truth(folder))
        assert [key.partition("/")[0] for key in files(store)] == ["merged"]
        assert seen(store) == truth(folder)
        assert sound(store)


@pytest.mark.parametrize("after", [False, True])
def test_a_launch_that_merges_is_broken_off_at_any_step(store, folder, after):
    """Of the next day; the launch after it ends what was begun."""
    whole(store, folder, merge=partial(merge_table, store))
    before = truth(folder)
    write(folder, "d.jsonl", ["d0", "d1", "d2"])
    for step in range(1, 200):
        crashing = Crashing(store, step, after)
        try:
            whole(crashing, folder, merge=partial(merge_table, crashing))
        except Crash:
            assert seen(store) in (before, truth(folder))
        else:
            break
    assert step > 12
    whole(store, folder, merge=partial(merge_table, store))
    assert [key.partition("/")[0] for key in files(store)] == ["merged"]
    assert seen(store) == truth(folder)
    assert sound(store)


def test_two_at_once_write_each_group_once(local, folder, monkeypatch):
    whole(local, folder)

    def other(store, run_id, of, without=()):
        first = merged.merge_files(store, run_id, of, without)
        answers = [first, None]  # it came between the look and the record
        monkeypatch.setattr(merged, "read_merged", lambda *_: answers.pop())
        assert merged.merge_files(store, run_id, of, without) == first
        return first

    monkeypatch.setattr(merge, "merge_files", other)
    assert compact(local).after == 1
    monkeypatch.undo()
    assert len(list(local.list("merged/"))) == 1
    assert seen(local) == truth(folder)


def test_a_run_that_was_planned_upon_it_before(local, folder):
    """Merged between the steps of the next day's run: its table may name the old files, which stay then."""
    whole(local, folder)
    write(folder, "a.jsonl", ["A0"])
    steps = 0
    for last in range(20):
        store = open_store(str(folder.parent / f"out-{last}"))
        write(folder, "a.jsonl", ["a0", "a1", "a2"])
        whole(store, folder)
        write(folder, "a.jsonl", ["A0"])
        for steps, _ in enumerate(launch(store, folder)):
            if steps == last:
                compact(store)
                sweep(store, older_than=-60)
        assert seen(store) == truth(folder)
        assert sound(store)
        sweep(store, older_than=-60)
        assert seen(store) == truth(folder)
        if steps < last:
            return


def test_readers_of_a_table_merged_only_now_keep_its_files(tmp_path, folder, monkeypatch):
    """The next day's run is published while the table before is merged, and is merged two days later."""
    store = open_store(str(tmp_path / "out"))
    whole(store, folder)
    write(folder, "d.jsonl", ["d0"])
    table_with = merge.table_with

    def late(*some):
        whole(store, folder)
        return table_with(*some)

    with monkeypatch.context() as patch:
        patch.setattr(merge, "table_with", late)
        compact(store)
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    read = files(store)
    assert compact(store).after == 1
    assert sweep(store) == []
    assert {entry.key for entry in sweep(store, older_than=-60)} >= set(read)
    assert seen(store) == truth(folder)
    assert sound(store)


def test_any_days(tmp_path):
    """Days in any order of additions, replacements, deletions, merges and sweeps, some of them broken off; every other
    launch merges before it publishes.
    """
    chance = random.Random(7)
    for round_ in range(3):
        folder, store = tmp_path / f"in-{round_}", open_store(str(tmp_path / f"out-{round_}"))
        write(folder, "a.jsonl", ["a0", "a1"])
        whole(store, folder, drop=True)
        for day in range(6):
            for name in chance.sample("abcd", chance.randint(0, 2)):
                path = folder / f"{name}.jsonl"
                if path.exists() and chance.random() < 0.4 and len(list(folder.iterdir())) > 1:
                    path.unlink()
                else:
                    write(folder, path.name, [f"{name}{day}.{at}" for at in range(chance.randint(1, 5))])
            whole(store, folder, drop=True, **{"merge": partial(merge_table, store)} if day % 2 else {})
            assert seen(store) == truth(folder)
            if chance.random() < 0.7:
                with contextlib.suppress(Crash):
                    compact(Crashing(store, chance.randint(1, 12), chance.random() < 0.5))
                assert seen(store) == truth(folder)
            if chance.random() < 0.5:
                sweep(store, older_than=-60)
            assert seen(store) == truth(folder)
            assert sound(store)


@pytest.mark.parametrize("what", ["data", "record", "table"])
def test_damage_is_named(local, folder, what):
    whole(local, folder)
    compact(local)
    run = current(local).run_id
    (one,) = all_merged(local, run)
    key = {
        "data": one.file.key,
        "record": next(local.list(f"_runs/{run}/merged/")).key,
        "table": merged_table_key(run),
    }[what]
    data = bytearray(local.get(key)[0])
    if what == "table":
        table = pq.read_table(pa.BufferReader(data))
        pq.write_table(table.slice(1), sink := io.BytesIO())
        data = bytearray(sink.getvalue())
    else:
        data[len(data) // 2] ^= 1
    local.put(key, bytes(data))
    try:
        problems = verify(local, run).problems
    except JobFailed as error:
        problems = [str(error)]
    assert any(key in problem and "damaged" in problem for problem in problems)


def test_row_groups_and_statistics(local):
    tables = [pa.table({"source": [f"s{at}"] * 30_000, "lang": ["de" if at < 5 else "fr"] * 30_000}) for at in range(8)]
    data, rows = merged.to_one(tables)
    assert rows == 240_000
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [100_000, 100_000, 40_000]
    ranges = [(group.column(1).statistics.min, group.column(1).statistics.max) for group in groups]
    assert ranges == [("de", "de"), ("de", "fr"), ("fr", "fr")]
    assert pq.read_table(pa.BufferReader(data)).equals(pa.concat_tables(tables))


@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 70, 1, 1], [40] * 20, [63] * 3, [70]])
def test_groups(sizes):
    files = [merged.File(f"data/{at}", size << 20, "", 1) for at, size in enumerate(sizes)]
    found = list(merge.groups(files))
    assert all(len(group) > 1 and all(file.bytes < merge.SMALL for file in group) for group in found)
    assert all(sum(file.bytes for file in group) <= merge.ENOUGH for group in found)
    small = sum(size < 64 for size in sizes)
    assert sum(map(len, found)) >= small - 1 if small > 1 else not found


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path, folder):
    """The process itself, at every call that changes the folder."""
    store = open_store(str(tmp_path / "out"))
    whole(store, folder)
    for step in range(100):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(step)]
        code = subprocess.run(command, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        assert seen(store) == truth(folder)
        assert sound(store)
        if not code:
            return
    raise AssertionError("no end")


KILLED = f"""
import os, sys
calls = 0
def counted(call):
    def inner(*some, **more):
        global calls
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), {int(signal.SIGKILL)})
        calls += 1
        return call(*some, **more)
    return inner
from xlmr_ray.batch.ledger import merge
from xlmr_ray.batch.store.open import open_store
merge.ENOUGH = 4000
for name in ("write", "fsync", "link", "rename", "replace", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
merge.compact(open_store(sys.argv[1]))
"""
