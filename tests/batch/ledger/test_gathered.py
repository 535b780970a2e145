"""Copies of records: read in the records' place they give what the records give, whatever is there of them."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batch.runs import RUN, commit, keys, plan
from xlmr_ray.batch.ledger import gathered
from xlmr_ray.batch.ledger.counted import counted
from xlmr_ray.batch.ledger.gathered import Gathered, all_counted, committed, gathered_prefix
from xlmr_ray.batch.ledger.manifest import finish, manifest_key
from xlmr_ray.batch.ledger.record import Stats, committed_shards, read_record, record_key
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.store.local import LocalStore
from xlmr_ray.batch.store.unwritten import Unwritten
from xlmr_ray.errors import JobFailed

# Of several forms, so that those that begin alike sort otherwise as names than as keys.
IDS = [
    "0000000-000000",
    "0000000-000001",
    "0000001-000000",
    "10000000-000000",
    "a",
    "a-1",
    "a-10",
    "a.b",
    "a_",
    "file-0",
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(gathered, "LEAST", 1)
    monkeypatch.setattr(gathered, "OF_AN_OBJECT", 3)
    monkeypatch.setattr(gathered, "HELD", 7)


def copy(store, shards):
    """What a driver that heard of these shards in this order leaves."""
    copies = Gathered(store, RUN)
    for shard in shards:
        record = read_record(store, RUN, shard)
        copies.add(record, store.get(record_key(RUN, shard))[0])
    copies.write()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = LocalStore(str(tmp_path_factory.mktemp("done")))
    for number, shard in enumerate(IDS):
        commit(store, shard, bad=number % 2, stats=Stats(tokens=number, seconds=1.0))
    return store


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    launches=st.lists(st.lists(st.sampled_from(IDS), unique=True), max_size=4), missing=st.sets(st.sampled_from(IDS))
)
def test_whatever_is_copied_the_records_are_the_same(done, launches, missing):
    store = Unwritten(done)
    for launch in launches:
        copy(store, launch)
    for shard in missing:
        store.delete(record_key(RUN, shard))
    records = [read_record(store, RUN, shard) for shard in committed_shards(store, RUN)]
    assert {record.shard for record in records} == {*IDS} - missing
    assert list(committed(store, RUN)) == records
    assert list(all_counted(store, RUN)) == [counted(record) for record in records]


def test_the_manifest_is_the_same_and_verified(store):
    shards = plan(store, 20)
    for shard in shards:
        commit(store, shard, bad=1)
    finish(store, RUN, shards)
    without, report = store.get(manifest_key(RUN))[0], replace(gather_report(store, RUN), made=0.0)
    store.delete(manifest_key(RUN))
    copy(store, shards[:5] + shards[8:])
    assert len(keys(store, gathered_prefix(RUN))) == 7  # of 7 held at a time, 3 in an object: 3 + 3 + 1, twice, and 3
    finish(store, RUN, shards)
    assert store.get(manifest_key(RUN))[0] == without
    assert replace(gather_report(store, RUN), made=0.0) == report
    assert verify(store, RUN).problems == ()


def test_only_a_record_makes_a_shard_done(local):
    shards = plan(local, 5)
    for shard in shards:
        commit(local, shard)
    copy(local, shards)
    local.delete(record_key(RUN, shards[3]))
    with pytest.raises(JobFailed, match="1 of 5 shards have no record, the first 00003"):
        finish(local, RUN, shards)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data + b"\0",
                                    lambda data: data.replace(b"attempt", b"attemqt")])  # fmt: skip
def test_records_are_read_where_a_copy_is_damaged(local, damage):
    shards = plan(local, 6)
    for shard in shards:
        commit(local, shard)
    copy(local, shards)
    key = keys(local, gathered_prefix(RUN))[0]
    data = local.get(key)[0]
    assert damage(data) != data
    local.put(key, damage(data))
    assert [record.shard for record in committed(local, RUN)] == shards
    finish(local, RUN, shards)
    assert verify(local, RUN).problems == ()


def test_none_where_what_was_created_may_not_be_what_is_there(tmp_path):
    store = LocalStore(str(tmp_path), at_least_once=True)
    commit(store, "00000")
    copy(store, ["00000"])
    assert keys(store, gathered_prefix(RUN)) == []


def test_few_are_not_worth_an_object(local, monkeypatch):
    monkeypatch.setattr(gathered, "LEAST", 2)
    for shard in ("00000", "00001"):
        commit(local, shard)
    copy(local, ["00000"])
    assert keys(local, gathered_prefix(RUN)) == []
    copy(local, ["00000", "00001"])
    assert len(keys(local, gathered_prefix(RUN))) == 1


@pytest.mark.parametrize(("name", "bytes"), [("OBJECT_BYTES", 1), ("HELD_BYTES", 1), ("OBJECT_BYTES", 1 << 20)])
def test_large_records_are_fewer_in_an_object(local, monkeypatch, name, bytes):
    monkeypatch.setattr(gathered, name, bytes)
    shards = [f"{number:05}" for number in range(6)]
    for shard in shards:
        commit(local, shard)
    copy(local, shards)
    assert len(keys(local, gathered_prefix(RUN))) == (6 if bytes == 1 else 2)
    assert [record.shard for record in committed(local, RUN)] == shards


def test_copies_of_another_form_are_not_read(local, monkeypatch):
    commit(local, "00000")
    monkeypatch.setattr(gathered, "RECORD", "another")
    copy(local, ["00000"])
    monkeypatch.setattr(gathered, "RECORD", "record")
    assert [record.shard for record in committed(local, RUN)] == ["00000"]


def test_records_that_are_copied_are_not_read(behind_proxy, proxy):
    shards = plan(behind_proxy, 12)
    for shard in shards:
        commit(behind_proxy, shard)
    copy(behind_proxy, shards)

    def read(do):
        proxy.requests.clear()
        do()
        return Counter(
            path.split("/")[-2] for method, path in proxy.requests if method == "GET" and "list-type" not in path
        )

    copies = len(keys(behind_proxy, gathered_prefix(RUN)))
    assert copies == 5
    for do in (lambda: finish(behind_proxy, RUN, shards), lambda: gather_report(behind_proxy, RUN)):
        found = read(do)
        assert (found["gathered"], found["shards"]) == (copies, 0)
    assert read(lambda: verify(behind_proxy, RUN))["shards"] == 12
