import copy
import errno
import fcntl
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faulty_proxy import CODES
from tests.rclone import running_rclone
from tests.seaweed import ACCESS_KEY, BUCKET, OPEN_BUCKET, SECRET_KEY
from xlmr_ray.batch.store.base import Changed, Exists, NoConditionalWrites, etag_of
from xlmr_ray.batch.store.filesystem import filesystem, reading
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError


def keys(store, prefix=""):
    return [entry.key for entry in store.list(prefix)]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_create_only_once(store):
    etag = store.create("a/b.json", b"first")
    assert store.get("a/b.json") == (b"first", etag)
    with pytest.raises(Exists, match=r"a/b\.json"):
        store.create("a/b.json", b"second")
    with pytest.raises(Exists):
        store.create("a/b.json", b"first")
    assert store.get("a/b.json")[0] == b"first"


def test_create_from_a_file(store):
    """Of any size: what grows with a run is not held in memory."""
    data = random.Random(0).randbytes((17 << 20) + 1)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        etag = store.create_file("a/b", file)
        assert store.get("a/b") == (data, etag)
        with pytest.raises(Exists, match="a/b"):
            store.create_file("a/b", file)
        file.truncate(0)
        store.create_file("empty", file)
    assert store.get("a/b")[0] == data
    assert store.get("empty")[0] == b""


def test_replace_only_unchanged(store):
    first = store.create("k", b"1")
    second = store.replace("k", b"2", first)
    assert second != first
    with pytest.raises(Changed):
        store.replace("k", b"3", first)
    with pytest.raises(Changed):
        store.replace("absent", b"3", first)
    assert store.get("k") == (b"2", second)
    assert store.head("absent") is None


def test_put_head_delete(store):
    before = time.time()
    store.put("f/x", b"12345")
    etag = store.put("f/x", b"123")
    entry = store.head("f/x")
    assert (entry.key, entry.size, entry.etag) == ("f/x", 3, etag)
    assert before - 5 < entry.modified < time.time() + 5
    store.delete("f/x")
    store.delete("f/x")
    assert store.head("f/x") is None
    assert store.head("f") is None
    with pytest.raises(FileNotFoundError):
        store.get("f/x")
    with pytest.raises(FileNotFoundError):
        store.open("f/x")


def test_empty_object(store):
    etag = store.create("empty", b"")
    assert store.get("empty") == (b"", etag)


def test_list_by_prefix(store):
    for key in ("runs/b/2", "runs/b/1", "runs/b/10", "runs/a", "runs/bc", "other"):
        store.put(key, b"x")
    assert keys(store, "runs/b/") == ["runs/b/1", "runs/b/10", "runs/b/2"]
    assert sorted(keys(store, "runs/b")) == ["runs/b/1", "runs/b/10", "runs/b/2", "runs/bc"]
    assert keys(store, "runs/b/1") == ["runs/b/1", "runs/b/10"]
    assert sorted(keys(store)) == ["other", "runs/a", "runs/b/1", "runs/b/10", "runs/b/2", "runs/bc"]
    assert keys(store, "nothing/") == []
    assert {entry.etag for entry in store.list("runs/a")} == {store.head("runs/a").etag}


def test_folders(store):
    for key in ("runs/b/2", "runs/b/x/3", "runs/a/1", "runs/file"):
        store.put(key, b"x")
    assert list(store.folders("runs/")) == ["a", "b"]
    assert list(store.folders("none/")) == []


def test_open_reads_and_seeks(store):
    store.put("big", bytes(range(256)) * 40)
    with store.open("big") as file:
        file.seek(256)
        assert file.read(3) == b"\x00\x01\x02"
        file.seek(-1, 2)
        assert file.read() == b"\xff"


def test_listing_in_pages(seaweed):
    folder = seaweed.new_folder()
    store = open_store(folder, options={**seaweed.options, "s3_additional_kwargs": {"MaxKeys": 3}})
    expected = [f"p/{i:02}" for i in range(10)]
    for key in reversed(expected):
        store.put(key, b"x")
    assert keys(store, "p/") == expected
    for i in range(7):
        store.put(f"q/{i}/x", b"x")
    assert list(store.folders("q/")) == [str(i) for i in range(7)]


def test_pickled_store_works(store):
    store.put("k", b"v")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get("k") == store.get("k")


def test_probe_leaves_nothing(store):
    store.probe()
    assert keys(store) == []


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_race_has_one_winner(store, operation):
    etag = store.create("start", b"start")

    def write(i):
        try:
            if operation == "create":
                store.create("key", b"%d" % i)
            else:
                store.replace("start", b"%d" % i, etag)
            return i
        except (Exists, Changed):
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [i for i in pool.map(write, range(16)) if i is not None]
    assert len(winners) == 1
    assert store.get("key" if operation == "create" else "start")[0] == b"%d" % winners[0]


def test_etag_of_info_is_the_stores(store, seaweed):
    store.put("k", b"v")
    fs, path = filesystem(store.url("k"), options=seaweed.options if store.url("").startswith("s3") else None)
    before = etag_of(fs.info(path))
    assert before == store.head("k").etag
    store.put("k", b"w")
    assert etag_of(fs.info(path)) != before


def test_filesystem_reads_parquet_and_sees_changes(seaweed):
    folder = seaweed.new_folder()
    fs, path = filesystem(f"{folder}/t", options=seaweed.options)
    assert fs.exists(path) is False
    pq.write_table(pa.table({"a": [1, 2]}), f"{path}/1.parquet", filesystem=fs)
    assert fs.ls(path, detail=False) == [f"{path}/1.parquet"]
    open_store(folder, options=seaweed.options).put("t/2.parquet", b"x")
    assert len(fs.ls(path)) == 2  # no listing is cached
    assert pq.read_table(f"{path}/1.parquet", filesystem=fs).num_rows == 2


# Local


def test_local_etag_changes_with_every_replacement(local):
    etags = [local.create("k", b"0")]
    for i in range(1, 40):
        etags.append(local.replace("k", b"%d" % (i % 10), etags[-1]))
    assert len(set(etags)) == 40


def test_local_write_is_whole_or_absent(local, monkeypatch):
    def cut(source, target):
        raise OSError(errno.EIO, "gone")

    local.put("a", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", cut)
        with pytest.raises(JobFailed, match=r"/k: cannot be written"):
            local.create("k", b"data")
    assert keys(local) == ["a"]
    assert list(local.list(".tmp/")) == []


def test_local_temporary_files_are_not_listed(local):
    local.put("a", b"x")
    Path(local.root, ".tmp", "left-by-a-crash").write_bytes(b"half")
    assert keys(local) == ["a"]
    assert keys(local, ".tmp/") == [".tmp/left-by-a-crash"]


def test_local_lost_link_answer_counts(local, monkeypatch):
    real = os.link

    def lost(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "as NFS says to a retry")

    monkeypatch.setattr(os, "link", lost)
    local.create("k", b"ours")
    assert local.get("k")[0] == b"ours"


@pytest.mark.parametrize("operation", ["put", "create"])
def test_disk_full_names_the_path(local, monkeypatch, operation):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    local.put("k", b"0")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobFailed, match=r"out/n: cannot be written: the disk is full") as error:
        getattr(local, operation)("n", b"1")
    one_line(error)
    monkeypatch.undo()
    assert keys(local) == ["k"]


def test_local_root_under_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/out: cannot be written: a file is where") as error:
        open_store(str(tmp_path / "file" / "out")).probe()
    one_line(error)


def test_local_disk_without_links_is_refused(local, monkeypatch):
    def link(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(fcntl, "flock", link)
    with pytest.raises(NoConditionalWrites, match="--at-least-once"):
        local.probe()
    asked_for = open_store(local.root, at_least_once=True)
    refuses_what_is_there(asked_for)
    assert keys(asked_for) == ["a/k"]
    assert asked_for.at_least_once
    assert not local.at_least_once


def test_key_cannot_leave_the_store(local):
    for key in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(UserError, match="outside"):
            local.put(key, b"")


def test_local_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("a b").put("k", b"1")
    assert open_store(f"file://{tmp_path}/a%20b").get("k")[0] == b"1"
    assert open_store("a b").url("k") == f"{tmp_path}/a b/k"


# S3: wrong calls


def probe_error(url, **options):
    with pytest.raises(UserError) as error:
        open_store(url, options=options, deadline=2.0).probe()
    text = one_line(error)
    assert SECRET_KEY not in text
    return text


def test_missing_bucket(seaweed):
    assert "s3://no-such-bucket/x/_probe" in (text := probe_error("s3://no-such-bucket/x", **seaweed.options))
    assert "does not exist" in text


def test_wrong_secret_is_told(seaweed):
    text = probe_error(f"s3://{BUCKET}/x", endpoint_url=seaweed.endpoint, key=ACCESS_KEY, secret="another-secret")
    assert "create was refused (403" in text  # one that was retried says "still failed after"
    assert "another-secret" not in text


def test_no_credentials(seaweed, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "no credentials" in probe_error(f"s3://{BUCKET}/x", endpoint_url=seaweed.endpoint)


def test_environment_is_enough(seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(seaweed.new_folder())
    pickled = pickle.dumps(store)
    assert SECRET_KEY.encode() not in pickled
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    pickle.loads(pickled).probe()  # the endpoint travels along


def test_nobody_answers():
    text = probe_error(f"s3://{BUCKET}/x", endpoint_url="http://127.0.0.1:9", key="a", secret=SECRET_KEY)
    assert "EndpointConnectionError" in text


def test_wrong_options():
    with pytest.raises(UserError, match=r"unknown option.*endpiont_url"):
        open_store("s3://b/x", options={"endpiont_url": "http://x"})
    with pytest.raises(UserError, match="names no bucket"):
        open_store("s3://")
    assert "endpoint_url is not a URL" in probe_error("s3://bucket/x", endpoint_url="localhost", key="a", secret="b")


def test_credentials_appear_nowhere(seaweed, proxy):
    options = {"endpoint_url": proxy.endpoint, "key": ACCESS_KEY, "secret": SECRET_KEY, "token": "token-1f2e"}
    store = open_store(seaweed.new_folder(), options=options, deadline=0.4)
    shown = [repr(store), str(store)]
    for fault in (403, 503, "reset"):
        proxy.fault = lambda method, path, fault=fault: fault
        for call in (lambda: store.create("k", b""), lambda: store.get("k"), lambda: list(store.list(""))):
            with pytest.raises(JobFailed) as error:
                call()
            shown += ["".join(traceback.format_exception(error.value)), repr(error.value)]
            shown.append(pickle.dumps(error.value, protocol=0).decode())
            assert error.value.__context__ is None
    for secret in (ACCESS_KEY, SECRET_KEY, "token-1f2e"):
        assert not any(secret in text for text in shown)
    assert repr(open_store("ftp://user:pass-9c@host/x")).count("pass-9c") == 0
    assert "pass-9c" not in open_store("ftp://user:pass-9c@host/x").url("k")


# S3: faults between client and server


def test_throttled_half_the_time(behind_proxy, proxy):
    chance = random.Random(7)
    proxy.fault = lambda method, path: 503 if chance.random() < 0.5 else None
    for i in range(6):
        behind_proxy.create(f"k/{i}", b"%d" % i)
    assert keys(behind_proxy, "k/") == [f"k/{i}" for i in range(6)]
    assert len(proxy.injected) > 3


def test_throttled_always_fails_within_the_deadline(seaweed, proxy):
    options = {**seaweed.options, "endpoint_url": proxy.endpoint}
    for deadline in (2, 8, 30):  # a busy machine can stand still for most of two seconds
        store = open_store(seaweed.new_folder(), options=options, deadline=float(deadline))
        proxy.clear()
        store.put("k", b"")  # the first call makes the client
        proxy.clear()
        proxy.fault = lambda method, path: 503
        begun = time.monotonic()
        with pytest.raises(
            JobFailed, match=rf"put still failed after {deadline} s of retries \(503 SlowDown\)"
        ) as error:
            store.put("k", b"")
        one_line(error)
        within = time.monotonic() - begun < deadline + 1
        if within and len(proxy.requests) > 2:
            return
    pytest.fail(f"{len(proxy.requests)} requests, within the deadline: {within}")


def test_expired_credentials_are_not_retried(behind_proxy, proxy):
    proxy.fault = lambda method, path: 403
    with pytest.raises(JobFailed, match=r"put was refused \(403 ExpiredToken\)"):
        behind_proxy.put("k", b"")
    assert len(proxy.requests) == 1


def first(count, fault):
    """Inject `fault` into the first `count` PUTs."""
    left = [count]

    def choose(method, path):
        if method != "PUT" or left[0] == 0:
            return None
        left[0] -= 1
        return fault

    return choose


@pytest.mark.parametrize("fault", ["lost", "reset", 409, 429, 500])
def test_create_through_a_fault(behind_proxy, proxy, fault):
    proxy.fault = first(2, fault)
    etag = behind_proxy.create("k", b"ours")
    assert behind_proxy.get("k") == (b"ours", etag)
    assert proxy.injected == [fault] * 2
    proxy.fault = first(2, fault)
    data = random.Random(0).randbytes(3 << 20)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        etag = behind_proxy.create_file("file", file)
    assert behind_proxy.get("file") == (data, etag)
    assert proxy.injected == [fault] * 4


def test_lost_answer_of_a_lost_race_is_a_lost_race(behind_proxy, proxy):
    behind_proxy.create("k", b"theirs")
    proxy.fault = first(1, "lost")
    with pytest.raises(Exists):
        behind_proxy.create("k", b"ours")


def test_lost_answer_of_a_replacement(behind_proxy, proxy):
    etag = behind_proxy.create("k", b"1")
    proxy.fault = first(1, "lost")
    new = behind_proxy.replace("k", b"2", etag)
    assert behind_proxy.get("k") == (b"2", new)


@pytest.mark.parametrize("fault", ["cut", "reset", 500])
def test_get_through_a_fault(behind_proxy, proxy, fault):
    data = os.urandom(100_000)
    behind_proxy.put("k", data)
    left = [2]

    def choose(method, path):
        left[0] -= 1
        return fault if left[0] >= 0 else None

    proxy.fault = choose
    assert behind_proxy.get("k")[0] == data
    left[0] = 2
    with behind_proxy.open("k") as file:
        assert file.read() == data
    assert proxy.injected.count(fault) == 4


def test_a_file_in_the_bucket_reads_like_one_on_the_disk(connected, tmp_path, monkeypatch):
    monkeypatch.setattr("xlmr_ray.batch.store.s3.BLOCK", 1000)
    data = os.urandom(5_003)
    connected.put("ranges", data)
    (tmp_path / "f").write_bytes(data)
    chance = random.Random(3)
    with connected.open("ranges") as ours, (tmp_path / "f").open("rb") as theirs:
        for _ in range(40):
            size, whence = chance.randrange(5000), chance.choice((os.SEEK_SET, os.SEEK_END))
            name = chance.choice(("read", "seek", "readline", "tell"))
            arguments = {"read": (size,), "seek": (-size if whence else size, whence)}.get(name, ())
            assert getattr(ours, name)(*arguments) == getattr(theirs, name)(*arguments)
        ours.seek(0)
        assert ours.read() == data


def test_an_object_replaced_while_it_is_read_is_not_taken_for_one(connected, monkeypatch):
    monkeypatch.setattr("xlmr_ray.batch.store.s3.BLOCK", 1000)
    connected.put("changing", b"1" * 5000)
    with connected.open("changing") as file:
        assert file.read(10) == b"1" * 10
        connected.put("changing", b"2" * 5000)
        with pytest.raises(JobFailed, match=r"changing: changed while it was read") as error:
            file.read(4000)
    one_line(error)


def test_reading_a_file_through_refusals_and_throttling_is_one_line(seaweed, proxy):
    options = {**seaweed.options, "endpoint_url": proxy.endpoint}
    store = open_store(seaweed.new_folder(), options=options, deadline=1.0)
    store.put("k", b"x" * 100)
    for fault, words in ((403, "read was refused (403 ExpiredToken)"), (503, "read still failed after 1 s")):
        proxy.clear()
        with store.open("k") as file:
            proxy.fault = lambda method, path, fault=fault: fault
            with pytest.raises(JobFailed) as error:
                file.read()
        assert words in one_line(error)


# Stores without conditional writes


def test_store_that_ignores_conditions_is_refused(seaweed, proxy):
    proxy.fault = lambda method, path: "unconditional" if method == "PUT" else None
    store = open_store(f"s3://{OPEN_BUCKET}/x", options={"endpoint_url": proxy.endpoint, "anon": True})
    with pytest.raises(NoConditionalWrites, match=r"s3://open/x/: .*--at-least-once") as error:
        store.probe()
    one_line(error)
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args
    assert keys(store) == []
    proxy.fault = lambda method, path: None
    store.probe()


def refuses_what_is_there(store):
    """A store that looks before it writes, which is not at once but better than nothing."""
    store.probe()
    etag = store.create("a/k", b"1")
    with pytest.raises(Exists):
        store.create("a/k", b"2")
    etag = store.replace("a/k", b"22", etag)
    with pytest.raises(Changed):
        store.replace("a/k", b"3", "0")
    assert store.get("a/k") == (b"22", etag)


def test_other_stores_are_at_least_once(tmp_path):
    url = f"memory://{tmp_path.name}"
    with pytest.raises(NoConditionalWrites, match="--at-least-once"):
        open_store(url).probe()
    store = open_store(url, at_least_once=True)
    refuses_what_is_there(store)
    store.put("b", b"")
    assert keys(store) == ["a/k", "b"]
    assert keys(store, "a/") == ["a/k"]
    assert list(store.folders("")) == ["a"]
    with store.open("a/k") as file:
        assert file.read() == b"22"
    store.delete("a/k")
    store.delete("a/k")
    assert store.head("a/k") is None
    with pytest.raises(FileNotFoundError):
        store.get("a/k")


def test_s3_at_least_once(seaweed):
    store = open_store(seaweed.new_folder(), options=seaweed.options, at_least_once=True)
    store.probe()
    store.create("a/k", b"1")
    with pytest.raises(Exists):
        store.create("a/k", b"2")
    assert keys(store) == ["a/k"]
    assert list(store.folders("")) == ["a"]


def test_s3_at_least_once_wrong_secret(seaweed):
    options = {**seaweed.options, "secret": "another-secret"}
    store = open_store(f"s3://{BUCKET}/x", options=options, at_least_once=True)
    with pytest.raises(UserError, match=r"s3://tests/x/_probe-\w+: cannot be written \(PermissionError\)") as error:
        store.probe()
    assert "another-secret" not in one_line(error)


def test_copy_shares_the_connection(seaweed):
    store = open_store(seaweed.new_folder(), options=seaweed.options)
    store.probe()
    assert copy.copy(store)._connection() is store._connection()
    assert pickle.loads(pickle.dumps(store))._connection() is not store._connection()


def test_unknown_scheme():
    with pytest.raises(UserError, match="no file system for nope://"):
        open_store("nope://x", at_least_once=True).probe()


def test_a_store_whose_package_is_missing_names_it(monkeypatch):
    def missing(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    for call in (lambda: filesystem("gs://b/x"), lambda: open_store("gs://b/x", at_least_once=True).probe()):
        with pytest.raises(UserError, match=r"gs://b/x: the package for gs:// is not installed: .*gcsfs") as error:
            call()
        one_line(error)


@pytest.mark.parametrize(
    "url", ["https://h.example/a.parquet?X-Amz-Signature=s3cr3t", "ftp://user:s3cr3t@h.example/x", "s3://id:s3cr3t@b/x"]
)
def test_a_secret_in_an_inputs_url_is_refused_before_anything_is_written(url):
    with pytest.raises(UserError, match="would be written into the plan") as error:
        filesystem(url)
    assert "s3cr3t" not in one_line(error)


def test_keys_in_an_outputs_url_are_refused():
    with pytest.raises(UserError, match=r"^s3://b/x: keys do not belong in a URL") as error:
        open_store("s3://id:s3cr3t@b/x")
    assert "s3cr3t" not in one_line(error)


def test_a_failed_read_of_an_input_says_no_signature():
    text = "403, message='Forbidden', url='https://h.example/x?X-Amz-Signature=s3cr3t'"
    with pytest.raises(JobFailed, match=r"^in: cannot be read: 403") as error, reading("in"):
        raise OSError(text)
    assert "s3cr3t" not in one_line(error)


def test_rclone_is_refused_and_usable_at_least_once():
    """A real server without conditional writes: the second create would win, and nobody would know."""
    with running_rclone() as server:
        url = server.new_folder()
        with pytest.raises(NoConditionalWrites, match=rf"^{url}/: this store has no conditional writes") as error:
            open_store(url, options=server.options, deadline=10.0).probe()
        one_line(error)
        store = open_store(url, options=server.options, at_least_once=True)
        store.probe()
        store.create("a/k", b"1")
        assert (keys(store), store.get("a/k")[0]) == (["a/k"], b"1")


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_refusals_are_told_after_one_request_each(behind_proxy, proxy, monkeypatch, code):
    monkeypatch.setitem(CODES, 403, code)
    proxy.fault = lambda method, path: 403
    calls = {
        "put": lambda: behind_proxy.put("k", b""),
        "create": lambda: behind_proxy.create("k", b""),
        "get": lambda: behind_proxy.get("k"),
        "list": lambda: list(behind_proxy.list("")),
    }
    for name, call in calls.items():
        before = len(proxy.requests)
        with pytest.raises(JobFailed, match=rf"{name} was refused \(403 {code}\); check the credentials") as error:
            call()
        one_line(error)
        assert len(proxy.requests) == before + 1


def test_a_quota_names_the_path(tmp_path):
    """The kernel's own limit on a file's size, in a process of its own."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from xlmr_ray.batch.store.open import open_store\n"
        "try: open_store(sys.argv[1]).put('k', b'x' * 5000)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"JobFailed {tmp_path}/k: cannot be written: the disk is full"), done
    assert done.stdout.count("\n") == 1
    assert keys(open_store(str(tmp_path))) == []
