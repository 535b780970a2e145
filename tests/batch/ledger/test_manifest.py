import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.batch.runs import RUN, commit, keys, plan
from xlmr_ray.batch.ledger.json_by_line import Damaged, by_line
from xlmr_ray.batch.ledger.manifest import finish, manifest_files, manifest_key, read_manifest
from xlmr_ray.batch.ledger.published import CURRENT, current, publish
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.errors import JobFailed

OTHER = "fedcba9876543210"


def finished(store, run, count=2):
    shards = plan(store, count, run=run)
    for shard in shards:
        commit(store, shard, ok=2, bad=1, run=run)
    return finish(store, run, shards)


def test_manifest_lists_what_was_committed(store):
    manifest = finished(store, RUN, 3)
    assert (manifest.shards, manifest.rows_in, manifest.rows_ok, manifest.rows_error) == (3, 9, 6, 3)
    files = list(manifest_files(store, RUN))
    assert sorted(file.key for file in files) == sorted([*keys(store, "data/"), *keys(store, "errors/")])
    assert manifest.bytes == sum(store.head(file.key).size for file in files)
    assert read_manifest(store, RUN) == manifest
    whole = json.loads(store.get(manifest_key(RUN))[0])
    assert [line["shard"] for line in whole["committed"]] == ["00000", "00001", "00002"]
    assert abs(manifest.last_commit - time.time()) < 60


def test_finishing_again_changes_nothing(store):
    first = finished(store, RUN)
    before = store.get(manifest_key(RUN))
    assert finish(store, RUN, ["00000", "00001"]) == first
    assert store.get(manifest_key(RUN)) == before


HEAD = {
    "identity": {
        "tasks": [
            {"task": "embedding", "prefix": "e_", "weights": "aa", "tokenizer": "bb", "options": {}, "settings": "cc"},
            {"task": "fill-mask", "prefix": "m_", "weights": "dd", "tokenizer": "bb", "options": {}, "settings": "ee"},
        ]
    }
}


def test_the_manifest_names_models_code_and_job_file(store):
    shards = plan(store, 1, **HEAD)
    commit(store, shards[0])
    manifest = finish(store, RUN, shards, code="0.1.0 (abc)", job_file=f"_runs/{RUN}/launches/1.000.json")
    assert read_manifest(store, RUN) == manifest
    head = json.loads(store.get(manifest_key(RUN))[0])
    assert head["models"] == [
        {"task": "embedding", "prefix": "e_", "weights": "aa", "tokenizer": "bb"},
        {"task": "fill-mask", "prefix": "m_", "weights": "dd", "tokenizer": "bb"},
    ]
    assert (head["code"], head["job_file"]) == ("0.1.0 (abc)", f"_runs/{RUN}/launches/1.000.json")
    assert verify(store, RUN).problems == ()
    # Whoever finishes it again with other code changes nothing, and is told what is there.
    before = store.get(manifest_key(RUN))
    assert finish(store, RUN, shards, code="0.2.0", job_file="elsewhere") == manifest
    assert store.get(manifest_key(RUN)) == before


@pytest.mark.parametrize(
    ("old", "new"), [(b"0.1.0", b"0.1.1"), (b'"weights":"aa"', b'"weights":"ab"'), (b"1.000", b"2.000")]
)
def test_a_manifest_that_names_others_is_told(local, old, new):
    shards = plan(local, 1, **HEAD)
    commit(local, shards[0])
    finish(local, RUN, shards, code="0.1.0", job_file=f"_runs/{RUN}/launches/1.000.json")
    data, _ = local.get(manifest_key(RUN))
    assert old in data
    local.put(manifest_key(RUN), data.replace(old, new))
    (problem,) = verify(local, RUN).problems
    assert problem.endswith("manifest.json: does not agree with the records")


def test_manifests_that_say_less_or_more_are_read(local):
    """Of versions before and after this one."""
    shards = plan(local, 1, **HEAD)
    commit(local, shards[0])
    manifest = finish(local, RUN, shards, code="0.1.0", job_file="x")
    content = json.loads(local.get(manifest_key(RUN))[0])
    for key in ("models", "code", "job_file", "check"):
        del content[key]
    committed = content.pop("committed")
    local.put(manifest_key(RUN), by_line(content, "committed", committed))
    older = replace(manifest, models=(), code="", job_file="")
    assert read_manifest(local, RUN) == older
    assert verify(local, RUN).problems == ()
    assert finish(local, RUN, shards, code="0.1.0", job_file="x") == older
    local.put(manifest_key(RUN), by_line({**content, "later": {"x": [1]}}, "committed", committed))
    assert read_manifest(local, RUN) == older


def test_a_run_without_rows(local):
    assert finished(local, RUN, 0).shards == 0
    assert read_manifest(local, RUN).rows_in == 0
    assert list(manifest_files(local, RUN)) == []


def test_not_all_shards(local):
    plan(local, 3)
    commit(local, "00001")
    local.put(f"data/{RUN}/00000-{'0' * 16}.parquet", b"still being committed")
    with pytest.raises(JobFailed, match="2 of 3 shards have no record, the first 00000"):
        finish(local, RUN, ["00000", "00001", "00002"])
    assert read_manifest(local, RUN) is None
    assert len(keys(local, "data/")) == 2


def test_a_shard_too_many(local):
    plan(local, 1)
    commit(local, "00000")
    commit(local, "00007")
    with pytest.raises(JobFailed, match="shard 00007 is committed but not in the plan"):
        finish(local, RUN, ["00000"])


def test_another_manifest_is_in_the_way(local):
    shards = plan(local, 1)
    commit(local, shards[0])
    local.put(manifest_key(RUN), b"{}")
    with pytest.raises(Damaged, match=r"manifest\.json: is damaged: its head is not"):
        finish(local, RUN, shards)
    local.delete(manifest_key(RUN))
    finish(local, RUN, shards)
    data, _ = local.get(manifest_key(RUN))
    local.put(manifest_key(RUN), data.replace(b'"rows_ok":2', b'"rows_ok":3'))
    with pytest.raises(Damaged, match=r"manifest\.json: is damaged: it does not agree"):
        finish(local, RUN, shards)
    local.put(manifest_key(RUN), b"{}")
    with pytest.raises(Damaged, match=r"manifest\.json: is damaged"):
        read_manifest(local, RUN)


def test_finish_leaves_foreign_files(local):
    shards = plan(local, 1)
    commit(local, shards[0])
    for key in (f"data/{RUN}/_SUCCESS", f"data/{RUN}/notes.txt", f"data/{OTHER}/00000-{'0' * 16}.parquet"):
        local.put(key, b"")
    finish(local, RUN, shards)
    assert len(keys(local, "data/")) == 4


# Publishing


def test_publish(store):
    assert current(store) is None
    finished(store, RUN)
    published, ours = publish(store, RUN, started=100.0)
    assert ours
    assert current(store) == published
    assert (published.run_id, published.started) == (RUN, 100.0)
    assert publish(store, RUN, started=100.0) == (published, True)


def test_unfinished_run_is_not_published(local):
    plan(local, 1)
    with pytest.raises(JobFailed, match="is not finished"):
        publish(local, RUN)


def test_the_later_launch_stays_published(store):
    finished(store, RUN)
    finished(store, OTHER)
    publish(store, OTHER, started=200.0)
    assert publish(store, RUN, started=100.0) == (current(store), False)
    assert current(store).run_id == OTHER
    assert publish(store, RUN, started=300.0)[1]  # launched again on purpose
    assert current(store).run_id == RUN
    assert publish(store, OTHER)[1]  # no time given: now
    assert current(store).run_id == OTHER


def test_publish_races(store):
    runs = [f"{i:016x}" for i in range(6)]
    for run in runs:
        finished(store, run, 0)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: publish(store, runs[i], started=100.0 + i), [3, 5, 0, 4, 1, 2]))
    assert current(store).run_id == runs[5]


def test_damaged_pointer(local):
    finished(local, RUN)
    for wrong in (b"{", b"[]", b"{}", b'{"run_id": "a", "started": null, "published": 1}'):
        local.put(CURRENT, wrong)
        with pytest.raises(Damaged, match=r"_current\.json: is damaged"):
            publish(local, RUN)


# Sweeping


def orphan(store, run, shard="00000", folder="data"):
    key = f"{folder}/{run}/{shard}-{'e' * 16}.parquet"
    store.put(key, b"orphan")
    return key


def test_sweep_takes_what_no_record_names(store):
    finished(store, RUN)
    committed = set(keys(store))
    lost = [orphan(store, RUN), orphan(store, RUN, "00001", "errors")]
    assert [entry.key for entry in sweep(store, dry_run=True)] == lost
    assert set(keys(store)) == {*committed, *lost}
    assert [entry.key for entry in sweep(store)] == lost
    assert set(keys(store)) == committed
    assert sweep(store, older_than=-60.0) == []


def test_sweep_spares_attempts_under_way(store):
    plan(store, 2)
    commit(store, "00001")
    young, lost = orphan(store, RUN), orphan(store, OTHER)
    assert sweep(store) == []
    assert [entry.key for entry in sweep(store, older_than=-60.0)] == sorted([young, lost])
    assert len(keys(store, "data/")) == 1


def test_sweep_takes_scratch(local):
    finished(local, RUN)
    local.put("_probe-1", b"")
    local.put(".tmp/left", b"")
    local.replace("_probe-1", b"1", local.head("_probe-1").etag)  # makes the lock file
    assert sweep(local) == []
    assert [entry.key for entry in sweep(local, older_than=-60.0)] == ["_probe-1", ".tmp/left"]
    assert keys(local, ".tmp/") == [".tmp/lock"]


def test_sweep_stops_at_a_damaged_record(local):
    """Which of the files beside it is the committed one, nobody knows then."""
    finished(local, RUN)
    lost = [orphan(local, RUN), orphan(local, RUN, "00001")]
    local.put(f"_runs/{RUN}/shards/00001.json", b"{}")
    with pytest.raises(Damaged, match=r"00001\.json"):
        sweep(local)
    local.delete(manifest_key(RUN))
    with pytest.raises(Damaged, match=r"00001\.json"):
        sweep(local, older_than=-60.0)
    assert all(local.head(key) is not None for key in lost)


def test_sweep_believes_no_manifest_that_misses_a_file(local):
    finished(local, RUN)
    there = keys(local)
    data, _ = local.get(manifest_key(RUN))
    attempt = json.loads(data)["committed"][0]["attempt"]
    local.put(manifest_key(RUN), data.replace(f'"attempt":"{attempt}"'.encode(), f'"attempt":"{"0" * 16}"'.encode()))
    assert sweep(local, older_than=-60.0) == []
    assert keys(local) == there


def test_late_attempt_leaves_nothing_beside_a_finished_run(store):
    finished(store, RUN)
    before = keys(store)
    _, won = commit(store, "00000")
    assert not won
    assert keys(store) == before
