import io
import json
import multiprocessing
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.batch.runs import RUN, commit, commit_all, create_plan, errors_of, keys, plan, rows_of, table_of
from xlmr_ray.batch.ledger import commit as commits
from xlmr_ray.batch.ledger.commit import commit_shard, to_parquet
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.json_by_line import Damaged, by_line, lines_of
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.record import (
    File,
    Record,
    Stats,
    committed_shards,
    new_attempt,
    plan_key,
    planned_shards,
    read_record,
    record_key,
)
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.base import Exists
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed


class Crash(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class Crashing:
    """A store that dies at its `at`-th call, before or after it took effect."""

    def __init__(self, store, at, after):
        self.store, self.left, self.after = store, at, after

    def __getattr__(self, name):
        method = getattr(self.store, name)
        if name == "url":
            return method

        def call(*args):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Crash
            try:
                return method(*args)
            finally:
                if self.left == 0:
                    raise Crash

        return call


def test_commit_and_read_back(store):
    record, won = commit(store, "00000", ok=3, bad=2, stats=Stats(1.5, 77))
    assert won
    assert (record.rows_in, record.rows_ok, record.rows_error) == (5, 3, 2)
    assert record.errors == (("empty_text", 2),)
    assert read_record(store, RUN, "00000") == record
    assert list(committed(store, RUN)) == [record]
    data, errors = record.files
    assert data.key == f"data/{RUN}/00000-{record.attempt}.parquet"
    assert table_of(store, data.key) == rows_of("00000", 3)
    assert table_of(store, errors.key) == errors_of("00000", 2)
    assert table_of(store, errors.key).schema == commits.ERROR_SCHEMA
    assert store.head(data.key).size == data.bytes


def test_no_error_rows_no_error_file(store):
    record, _ = commit(store, "00000", ok=1)
    assert [file.key.split("/")[0] for file in record.files] == ["data"]
    assert keys(store, "errors/") == []


def test_all_rows_failed(local):
    record, _ = commit(local, "00000", ok=0, bad=3)
    assert table_of(local, record.files[0].key).num_rows == 0


def test_second_attempt_loses_and_leaves_nothing(store):
    record, _ = commit(store, "00000")
    again, won = commit(store, "00000", ok=3)
    assert (again, won) == (record, False)
    assert keys(store, "data/") == [record.files[0].key]


def test_same_attempt_again_has_won_and_keeps_its_file(store):
    record, _ = commit(store, "00000", attempt="0" * 16)
    assert commit(store, "00000", attempt="0" * 16) == (record, True)
    assert keys(store, "data/") == [record.files[0].key]


def test_rows_must_add_up(local):
    with pytest.raises(JobFailed, match=r"shard 00000 of in/00000: 9 rows in, but 3 out and 2 errors"):
        commit(local, "00000", ok=3, bad=2, rows_in=9)
    assert keys(local) == []


def test_errors_have_no_nulls(local):
    errors = pa.table({"source": ["a"], "row": [None], "id": [""], "code": ["c"], "message": [""]})
    with pytest.raises(ValueError, match="without nulls"):
        commit_shard(
            local,
            RUN,
            "0",
            attempt=new_attempt(),
            rows=rows_of("0", 1),
            errors=errors,
            rows_in=2,
            source_key="a",
            source_etag="e",
        )


def test_shard_ids_are_names(local):
    for wrong in ("a/b", "", ".x", "a b"):
        with pytest.raises(ValueError, match="shard id"):
            commit(local, wrong)


def test_threads_race(store):
    """All pass the first look before any writes, so that the record alone decides."""
    barrier = threading.Barrier(6)

    class Together(Crashing):
        def __getattr__(self, name):
            if name == "put":
                barrier.wait(20)
            return getattr(self.store, name)

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: commit(Together(store, 0, False), "00000"), range(6)))
    assert sum(won for _, won in results) == 1
    assert len({record.attempt for record, _ in results}) == 1
    assert len(keys(store, f"_runs/{RUN}/shards/")) == 1
    assert keys(store, "data/") == [results[0][0].files[0].key]


def test_processes_race(tmp_path, seaweed):
    places = [(str(tmp_path), None), (seaweed.new_folder(), seaweed.options)]
    shards = [f"{i:05}" for i in range(10)]
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    pipes = [context.Pipe() for _ in range(2)]
    children = [context.Process(target=commit_all, args=(places, shards, start, pipe)) for _, pipe in pipes]
    for child in children:
        child.start()
    won = [pipe.recv() for pipe, _ in pipes]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert all(a != b for a, b in zip(*won, strict=True))
    for url, options in places:
        store = open_store(url, options=options)
        assert list(committed_shards(store, RUN)) == shards
        assert len(keys(store, "data/")) == len(keys(store, "errors/")) == 10
        plan(store, 10)
        finish(store, RUN, shards)
        assert verify(store, RUN).problems == ()


STEPS = 7  # the calls of a commit with error rows: look, two PUTs, two checks, the record; and one more than there are


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_crash_at_each_step(store, step, after):
    plan(store, 2)
    commit(store, "00001")
    try:
        commit(Crashing(store, step, after), "00000", ok=2, bad=1)
        crashed = False
    except Crash:
        crashed = True
    assert crashed == (step < STEPS)
    _, won = commit(store, "00000", ok=2, bad=1)
    assert won == (crashed and not (step == STEPS - 1 and after))
    finish(store, RUN, ["00000", "00001"])
    report = verify(store, RUN)
    assert report.problems == ()
    assert (report.shards, report.rows_in, report.orphans) == (2, 5, 0)
    assert len(keys(store, "data/")) == 2
    assert len(keys(store, "errors/")) == 1


def test_crash_count_is_right(local):
    crashing = Crashing(local, 100, False)
    commit(crashing, "00000", ok=2, bad=1)
    assert 100 - crashing.left == STEPS - 1


def test_folder_of_a_finished_run_reads_as_the_committed_rows(tmp_path):
    store = open_store(str(tmp_path))
    plan(store, 2)
    for step in (3, 4, 6):
        with pytest.raises(Crash):
            commit(Crashing(store, step, False), "00000", ok=5, bad=1)
    commit(store, "00000", ok=2, bad=1)
    commit(store, "00001", ok=3)
    assert len(keys(store, "data/")) > 2
    finish(store, RUN, ["00000", "00001"])
    assert pq.read_table(tmp_path / "data" / RUN) == pa.concat_tables([rows_of("00000", 2), rows_of("00001", 3)])
    assert pq.read_table(tmp_path / "errors" / RUN) == errors_of("00000", 1)


@pytest.mark.parametrize("method", ["PUT", "HEAD", "GET"])
def test_every_answer_lost_once(behind_proxy, proxy, method):
    seen = set()

    def lose(verb, path):
        if verb != method or (verb, path) in seen:
            return None
        seen.add((verb, path))
        return "lost"

    proxy.fault = lose
    create_plan(behind_proxy, RUN, {"shards": [{"id": "00000"}]})
    record, won = commit(behind_proxy, "00000", ok=2, bad=1)
    assert won
    finish(behind_proxy, RUN, ["00000"])
    assert verify(behind_proxy, RUN).problems == ()
    assert len(proxy.injected) >= 2
    assert list(committed(behind_proxy, RUN)) == [record]


def test_record_that_comes_back_as_taken_but_is_ours(local):
    class Doubting(Crashing):
        def create(self, key, data):
            self.store.create(key, data)
            raise Exists(key)

    record, won = commit(Doubting(local, 0, False), "00000")
    assert won
    assert keys(local, "data/") == [record.files[0].key]


def test_file_swept_before_its_record(local):
    class Swept(Crashing):
        def put(self, key, data):
            etag = self.store.put(key, data)
            self.store.delete(key)
            return etag

    with pytest.raises(JobFailed, match="is not what was written"):
        commit(Swept(local, 0, False), "00000")
    assert list(committed_shards(local, RUN)) == []


def test_attempt_that_slept_too_long_does_not_commit(local, monkeypatch):
    clock = iter([0.0, commits.MAX_COMMIT + 1])
    monkeypatch.setattr(commits.time, "monotonic", lambda: next(clock))
    with pytest.raises(JobFailed, match="may have removed it"):
        commit(local, "00000")
    assert list(committed_shards(local, RUN)) == []


# Plans


def test_shards_of_a_plan(store):
    content = {"job": "x", "shards": [{"id": "00000", "source": "ä"}, {"id": "00001"}]}
    create_plan(store, RUN, content)
    assert list(planned_shards(store, RUN)) == ["00000", "00001"]
    assert json.loads(store.get(plan_key(RUN))[0]) == content


def test_a_plan_not_written_by_line(local):
    local.put(plan_key(RUN), b'{"shards": [{"id": "a"}], "more": 1}')
    assert list(planned_shards(local, RUN)) == ["a"]
    with pytest.raises(FileNotFoundError):
        list(planned_shards(local, "other"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), json_values, max_size=4)


@given(objects, st.lists(objects, max_size=5))
@settings(max_examples=60, deadline=None)
def test_by_line_reads_whole_and_by_line(head, items):
    head.pop("items", None)
    data = by_line(head, "items", items)
    assert json.loads(data) == {**head, "items": items}
    assert list(lines_of(io.BytesIO(data), "items", "u")) == items
    for cut in range(1, 4):
        with pytest.raises(Damaged):
            list(lines_of(io.BytesIO(data[:-cut] if cut > 1 else data + b"x"), "items", "u"))


@given(st.integers(0), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_of_a_record_is_seen(position, change):
    data = bytearray(RECORD.to_bytes())
    data[position % len(data)] ^= change
    with pytest.raises(Damaged, match="the-url: is damaged"):
        Record.from_bytes(bytes(data), "the-url")


RECORD = Record(
    RUN,
    "00000",
    "ab" * 8,
    (File("data/x", 10, "00", 2),),
    3,
    2,
    1,
    "s3://in/a ä.parquet",
    "etag",
    1.5,
    Stats(2.0, 3),
    (("code", 1),),
)


def test_record_round_trip():
    assert Record.from_bytes(RECORD.to_bytes(), "u") == RECORD
    assert pickle.loads(pickle.dumps(RECORD)) == RECORD


def test_record_in_the_wrong_place(local):
    record, _ = commit(local, "00000")
    local.put(record_key(RUN, "00001"), record.to_bytes())
    with pytest.raises(Damaged, match=r"00001\.json: is damaged: is the record of shard 00000"):
        list(committed(local, RUN))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_equal_tables_give_equal_bytes(cuts, seed):
    chance = random.Random(seed)
    n = sum(cuts)
    table = pa.table(
        {
            "label": [chance.choice(["de", "en", None]) for _ in range(n)],
            "embedding": pa.array([[chance.random() for _ in range(4)] for _ in range(n)], pa.list_(pa.float32(), 4)),
        }
    )
    offset, chunks = 0, []
    for cut in cuts:
        chunks.append(table.slice(offset, cut))
        offset += cut
    data = to_parquet(table)
    assert to_parquet(pa.concat_tables(chunks)) == data
    assert pq.read_table(pa.BufferReader(data)) == table
