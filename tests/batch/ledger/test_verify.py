import io
import json

import pyarrow.parquet as pq
import pytest

from tests.batch.runs import RUN, commit, keys, plan, rows_of
from xlmr_ray.batch.ledger.json_by_line import by_line
from xlmr_ray.batch.ledger.manifest import finish, manifest_key
from xlmr_ray.batch.ledger.published import publish
from xlmr_ray.batch.ledger.record import Record, plan_key, record_key
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.errors import UserError


@pytest.fixture
def run(store):
    """A finished and published run of three shards, one of them with error rows."""
    return made(store)


def made(store):
    shards = plan(store, 3)
    for shard in shards:
        commit(store, shard, ok=4, bad=2 if shard == "00001" else 0)
    finish(store, RUN, shards)
    publish(store, RUN)
    return store


@pytest.fixture
def local_run(local):
    return made(local)


def change(store, key, edit):
    data = edit(store.get(key)[0])
    store.put(key, data)


def flip(data):
    middle = bytearray(data)
    middle[len(data) // 2] ^= 1
    return bytes(middle)


def test_good_run(run):
    report = verify(run)
    assert report.ok
    assert report.problems == ()
    assert (report.run_id, report.shards, report.files, report.orphans) == (RUN, 3, 4, 0)
    assert (report.rows_in, report.rows_ok, report.rows_error) == (14, 12, 2)
    assert report.bytes == sum(entry.size for folder in ("data/", "errors/") for entry in run.list(folder))


def data_key(store, shard="00001", folder="data"):
    return next(key for key in keys(store, f"{folder}/{RUN}/") if f"/{shard}-" in key)


@pytest.mark.parametrize("target", ["plan", "record", "manifest", "data", "errors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "empty", "longer"])
def test_damage_is_named(store, target, damage):
    made(store)
    key = {
        "plan": lambda: plan_key(RUN),
        "record": lambda: record_key(RUN, "00001"),
        "manifest": lambda: manifest_key(RUN),
        "data": lambda: data_key(store),
        "errors": lambda: data_key(store, folder="errors"),
    }[target]()
    if damage == "gone":
        store.delete(key)
    else:
        edits = {"flip": flip, "cut": lambda d: d[:-3], "empty": lambda d: b"", "longer": lambda d: d + b"x"}
        change(store, key, edits[damage])
    report = verify(store, RUN)
    assert not report.ok
    assert len(report.problems) == 1
    assert report.problems[0].startswith(store.url(key) + ": ")
    assert "\n" not in report.problems[0]


def test_every_byte_of_manifest_and_plan_counts(local_run):
    for key in (manifest_key(RUN), plan_key(RUN)):
        good = local_run.get(key)[0]
        for position in range(0, len(good), 17):
            bad = bytearray(good)
            bad[position] ^= 2
            local_run.put(key, bytes(bad))
            assert any(local_run.url(key) in problem for problem in verify(local_run, RUN).problems)
        local_run.put(key, good)
    assert verify(local_run).ok


def test_valid_file_with_other_rows(local_run):
    """A whole Parquet file in the place of another: only its checksum tells."""
    key = data_key(local_run)
    out = io.BytesIO()
    pq.write_table(rows_of("99999", 4), out)
    local_run.put(key, out.getvalue())
    (problem,) = verify(local_run).problems
    assert problem.startswith(local_run.url(key))


def forged(store, edit):
    """A record whose own checksum is right, but whose content is not."""
    key = record_key(RUN, "00001")
    content = json.loads(store.get(key)[0])
    edit(content)
    content.pop("check")
    content.pop("version")
    from xlmr_ray.batch.ledger.record import File, Stats

    content["files"] = tuple(File(**file) for file in content["files"])
    content["stats"] = Stats(**content["stats"])
    store.put(key, Record(**content).to_bytes())
    return store.url(key)


def test_counts_that_do_not_add_up(local_run):
    url = forged(local_run, lambda record: record.update(rows_in=7))
    assert f"{url}: 7 rows in, but 4 out and 2 errors" in verify(local_run).problems
    url = forged(local_run, lambda record: record.update(rows_in=7, rows_ok=5))
    assert f"{url}: counts 5 rows in data, its files 4" in verify(local_run).problems


def test_row_count_that_the_file_has_not(local_run):
    forged(local_run, lambda record: record["files"][0].update(rows=9))
    assert f"{local_run.url(data_key(local_run))}: has 4 rows, its record says 9" in verify(local_run).problems


def test_shard_that_the_plan_has_not(local_run):
    commit(local_run, "00009")
    problems = verify(local_run).problems
    assert f"{local_run.url(record_key(RUN, '00009'))}: its shard is not in the plan" in problems
    assert f"{local_run.url(manifest_key(RUN))}: does not agree with the records" in problems


def test_another_plan(local_run):
    content = {"job": "other", "shards": [{"id": f"{i:05}"} for i in range(3)]}
    local_run.put(plan_key(RUN), by_line(content, "shards", content["shards"]))
    (problem,) = verify(local_run).problems
    assert problem.startswith(local_run.url(plan_key(RUN)))


def test_orphans_are_counted_and_no_problem(local_run):
    local_run.put(f"data/{RUN}/00000-{'e' * 16}.parquet", b"")
    report = verify(local_run)
    assert report.ok
    assert report.orphans == 1


def test_unfinished_run(local):
    plan(local, 30)
    commit(local, "00003")
    report = verify(local, RUN)
    assert report.problems[0] == f"{local.url(manifest_key(RUN))}: is missing: the run is not finished"
    assert report.problems[1] == f"{local.url(record_key(RUN, '00000'))}: is missing"
    assert "and 9 more records are missing" in report.problems[-1]
    assert len(report.problems) == 1 + 20 + 1


def test_nothing_to_verify(local, local_run):
    with pytest.raises(UserError, match=f"has no run x; its runs: {RUN}"):
        verify(local, "x")
    local.delete("_current.json")
    with pytest.raises(UserError, match=f"nothing is published there yet; name one of its runs: {RUN}"):
        verify(local)
