"""The bookkeeping of runs of very many shards: the same answers, in memory that does not grow with them."""

import io
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.batch.runs import RUN, commit, keys, plan
from tests.benchmarks.bookkeeping import make
from xlmr_ray.batch.ledger import gathered, in_order, json_by_line, spool
from xlmr_ray.batch.ledger.manifest import finish, manifest_files, manifest_key, read_manifest
from xlmr_ray.batch.ledger.record import committed_shards, plan_key
from xlmr_ray.batch.ledger.small_ids import Attempts, ShardIds
from xlmr_ray.batch.ledger.status import status
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.store import base
from xlmr_ray.batch.store.local import LocalStore
from xlmr_ray.bench.sizing import estimate
from xlmr_ray.errors import JobFailed

NAMES = [
    "0000000-000000", "0000000-000002", "0000012-000001", "10000000-000000", "9999999-1000000", "files-0000000",
    "00000", "0000000-00002", "00000000-000000", "０000000-000001", "0000000-000000-000001",
]  # fmt: skip


def test_shard_ids_of_any_form_have_their_indices():
    ids = ShardIds(iter(NAMES))
    assert len(ids) == len(NAMES)
    assert [ids.index(name) for name in NAMES] == list(range(len(NAMES)))
    others = ("0000000-000001", "0000012-000000", "files-0000001", "", "0", "000000000-000000", "0000000-000000 ")
    assert [ids.index(name) for name in others] == [-1] * len(others)
    seen = bytearray(len(NAMES))
    assert ids.missing(seen, 100) == sorted(NAMES)
    assert ids.missing(seen, 2) == sorted(NAMES)[:2]
    seen[ids.index("00000")] = seen[0] = 1
    assert ids.missing(seen, 100) == sorted({*NAMES} - {"00000", NAMES[0]})
    assert ShardIds(()).missing(bytearray(), 1) == []


def test_attempts():
    attempts = Attempts()
    assert "0" * 16 not in attempts
    attempts.add("another form")
    for attempt in ("f" * 16, "0" * 16, "00000000000000ab"):
        attempts.add(attempt)
        assert attempt in attempts
    assert "0" * 15 + "1" not in attempts


def test_a_store_that_takes_no_file_gets_bytes():
    class Plain:
        def create(self, key, data):
            self.data = data
            return "etag"

    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.seek(0)
        for one in (file, io.BytesIO(b"x")):
            plain = Plain()
            assert base.create_file(plain, "k", one) == "etag"
            assert plain.data == b"x"


@pytest.fixture
def shares_no_memory(monkeypatch):
    monkeypatch.setattr(spool, "MOST", 1000)


def test_a_manifest_that_waits_on_the_disk_is_the_same(store, shares_no_memory, monkeypatch):
    shards = plan(store, 40)
    for shard in shards:
        commit(store, shard, ok=2, bad=1)
    manifest = finish(store, RUN, shards)
    assert read_manifest(store, RUN) == manifest
    assert sorted(file.key for file in manifest_files(store, RUN)) == [*keys(store, "data/"), *keys(store, "errors/")]
    data = store.get(manifest_key(RUN))[0]
    assert [line["shard"] for line in json.loads(data)["committed"]] == shards
    assert finish(store, RUN, shards) == manifest
    assert verify(store, RUN).problems == ()
    store.delete(manifest_key(RUN))
    monkeypatch.setattr(spool, "MOST", 1 << 20)
    finish(store, RUN, shards)
    assert store.get(manifest_key(RUN))[0] == data


def test_a_full_disk_for_temporary_files_is_told(tmp_path, shares_no_memory, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "wb", buffering=0))
    with (
        pytest.raises(JobFailed, match="cannot be written: No space left on device; free some space, or set TMPDIR"),
        spool.spooled(b"x" * 500 for _ in range(10)),
    ):
        pass


COUNTS = (400, 1200)
DOING = {
    "finish": lambda store, shards: finish(store, RUN, iter(shards)).shards,
    "finish again": lambda store, shards: finish(store, RUN, iter(shards)).shards,
    "verify": lambda store, shards: verify(store, RUN).shards,
    "status": lambda store, shards: next(iter(status(store, RUN))).done,
    "sweep": lambda store, shards: len(shards) + len(sweep(store)),
    "report": lambda store, shards: gather_report(store, RUN).shards,
}


def test_memory_does_not_grow_with_the_shards(tmp_path):
    """By less than the line of a shard in the manifest, which is 400 bytes; a listing of a local folder is 100."""
    code = f"from tests.batch.ledger.test_many import measure; measure({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, timeout=120)
    few, many = map(json.loads, done.stdout.splitlines())
    grown = {name: (many[name] - few[name]) / (COUNTS[1] - COUNTS[0]) for name in [*DOING, "status of it unfinished"]}
    assert {name: each for name, each in grown.items() if each > 250} == {}, grown


def measure(folder):
    """In a process of its own, which never stops to trace: Python crashes there where other threads are."""
    in_order.MOST = 1  # so that few shards are as many at a time
    gathered.OF_AN_OBJECT = 10
    spool.MOST, json_by_line.BLOCK, base.BLOCK = 1000, 10_000, 10_000
    runs = [LocalStore(f"{folder}/{count}") for count in COUNTS]
    for store, count in zip(runs, COUNTS, strict=True):
        lines = ",\n".join(json.dumps({"id": shard, "rows": 16}) for shard in names(count))
        store.create(plan_key(RUN), f'{{"job":"x","shards":[\n{lines}\n]}}\n'.encode())
        make(store.root, range(count))
    tracemalloc.start()
    for store, count in zip(runs, COUNTS, strict=True):
        shards, peaks = names(count), {}
        for name, do in {"status of it unfinished": DOING["status"], **DOING}.items():
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            assert do(store, shards) == count
            peaks[name] = tracemalloc.get_traced_memory()[1] - before
        print(json.dumps(peaks), flush=True)
    os._exit(0)


def names(count):
    return [f"{i // 1000:07d}-{i % 1000:06d}" for i in range(count)]


def test_requests_of_a_shard(behind_proxy, proxy):
    """What a run makes of them, to write and to read, is what `plan` reckons with."""

    def counted(do):
        proxy.requests.clear()
        do()
        methods = Counter("LIST" if "list-type=2" in path else method for method, path in proxy.requests)
        return methods["PUT"], methods["GET"] + methods["HEAD"], methods["LIST"]

    found = []
    for run, count in (("few", 3), ("many", 8)):
        shards = plan(behind_proxy, count, run=run)
        of = {"commit": counted(lambda run=run, shards=shards: [commit(behind_proxy, one, run=run) for one in shards])}
        of["resume"] = counted(lambda run=run: list(committed_shards(behind_proxy, run)))
        of["unfinished"] = counted(lambda run=run: list(status(behind_proxy, run)))
        of["finish"] = counted(lambda run=run, shards=shards: finish(behind_proxy, run, shards))
        of["verify"] = counted(lambda run=run: verify(behind_proxy, run))
        of["report"] = counted(lambda run=run: gather_report(behind_proxy, run))
        of["status"] = counted(lambda run=run: list(status(behind_proxy, run)))
        found.append(of)
    each = {name: tuple((m - f) / 5 for f, m in zip(found[0][name], found[1][name], strict=True)) for name in found[0]}
    assert each == {
        "commit": (2, 2, 0),
        "resume": (0, 0, 0),
        "unfinished": (0, 0, 0),
        "finish": (0, 1, 0),
        "verify": (0, 2, 0),
        "report": (0, 1, 0),
        "status": (0, 0, 0),
    }
    assert found[1]["resume"] == (0, 0, 1)
    # And of error files, hashes, launches and, twice, copies: few or none.
    assert found[1]["finish"][2] + found[1]["report"][2] == estimate.LISTINGS + 5
    assert counted(lambda: sweep(behind_proxy))[1] == 2 * 5  # two runs: is it finished, the manifest, was it merged
