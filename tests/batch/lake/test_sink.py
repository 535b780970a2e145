"""A finished run is one commit of a Delta table, whose rows are those that readers of the output see."""

import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from tests.batch.days import launch, seen, truth, whole, write
from tests.batch.direct import job_of, rows_of, run_directly
from tests.batch.lake.reading import counted
from xlmr_ray.batch.lake.sink import check_sink, commit_published
from xlmr_ray.batch.ledger.merge import compact
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError

deltalake = pytest.importorskip("deltalake")


@pytest.fixture
def corpus(tmp_path):
    write(tmp_path / "in", "a.jsonl", ["a", "b", "c"])
    write(tmp_path / "in", "b.jsonl", ["d"])
    return tmp_path / "in"


def table_at(url, environment=None, version=None):
    options = {**environment, "AWS_ALLOW_HTTP": "true"} if environment else None
    return deltalake.DeltaTable(f"{url}/data", version=version, storage_options=options)


def texts(table):
    return sorted(table.to_pyarrow_table()["text"].to_pylist())


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_incremental_runs_are_a_commit_each(request, monkeypatch, corpus, tmp_path, place):
    environment = None
    url = str(tmp_path / "out")
    if place == "bucket":
        seaweed = request.getfixturevalue("seaweed")
        environment = seaweed.environment
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = seaweed.new_folder()
    store = open_store(url)
    for day, (name, content) in enumerate([("b.jsonl", ["d"]), ("c.jsonl", ["e"]), ("a.jsonl", ["x"])]):
        write(corpus, name, content)
        whole(store, corpus)
        for _ in range(2):
            commit_published(store, "delta")
        table = table_at(url, environment)
        assert (table.version(), texts(table)) == (day, sorted(truth(corpus).values()))
        assert table.history(1)[0]["xlmr_ray.run"] == current(store).run_id
        assert table.transaction_version(f"xlmr-ray/{current(store).run_id}") == 1
    assert texts(table_at(url, environment, version=0)) == ["a", "b", "c", "d"]


def test_read_back_by_other_engines(corpus, tmp_path):
    out = tmp_path / "out"
    run_directly(job_of("embedded:mini", corpus, out, keep=["lang"], id="id", task="embedding"))
    commit_published(open_store(str(out)), "delta")
    ours = rows_of(out)
    dataset = table_at(out).to_pyarrow_table()
    assert counted(dataset.to_pylist()) == counted(ours)
    table = pa.Table.from_pylist(ours)
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    assert duckdb.sql("SELECT count(*), sum(len(embedding)) FROM dataset").fetchall()[0][0] == len(ours)
    # Vectors are of a fixed length in the files, and Delta has no such type, which Polars' own reader does not forgive.
    read = polars.read_delta(str(out / "data"), use_pyarrow=True)
    assert counted(read.drop("embedding").to_dicts()) == counted(table.drop(["embedding"]).to_pylist())
    assert verify(open_store(str(out))).ok


def test_many_drivers_at_once_make_one_commit(corpus, tmp_path, local):
    for version in range(2):
        write(corpus, f"more-{version}.jsonl", ["y"] * (version + 1))
        whole(local, corpus)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: commit_published(local, "delta"), range(6)))
        assert (table_at(tmp_path / "out").version(), texts(table_at(tmp_path / "out"))) == (
            version,
            sorted(seen(local).values()),
        )


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_driver_that_ends_around_the_commit(corpus, tmp_path, local, monkeypatch, moment):
    whole(local, corpus)
    commit_published(local, "delta")
    write(corpus, "c.jsonl", ["e"])
    whole(local, corpus)
    real = deltalake.DeltaTable.create_write_transaction

    def ends(*args, **options):
        if moment == "after":
            real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(deltalake.DeltaTable, "create_write_transaction", ends)
    with pytest.raises(KeyboardInterrupt):
        commit_published(local, "delta")
    monkeypatch.undo()
    commit_published(local, "delta")
    assert (table_at(tmp_path / "out").version(), texts(table_at(tmp_path / "out"))) == (1, ["a", "b", "c", "d", "e"])


def test_other_columns_come_in_one_commit(corpus, tmp_path):
    out = tmp_path / "out"
    for version, keep in enumerate(([], ["lang"])):
        run_directly(job_of("embedded:mini", corpus, out, keep=keep))
        commit_published(open_store(str(out)), "delta")
        assert table_at(out).version() == version
        assert counted(table_at(out).to_pyarrow_table().to_pylist()) == counted(rows_of(out))


def test_what_cannot_be_committed_is_one_line(corpus, tmp_path, local, monkeypatch):
    whole(local, corpus)
    (tmp_path / "out" / "data" / "_delta_log").mkdir()
    (tmp_path / "out" / "data" / "_delta_log" / f"{0:020}.json").write_text("{}")
    with pytest.raises(JobFailed, match=r"the Delta table cannot be committed to: .+ tries again"):
        commit_published(local, "delta")
    monkeypatch.setitem(sys.modules, "deltalake", None)
    from xlmr_ray.batch.prepare import prepare_run

    job = job_of("embedded:mini", corpus, tmp_path / "out")
    job = job.model_copy(update={"output": job.output.model_copy(update={"table": "delta"})})
    with pytest.raises(UserError, match=r"output\.table: .*pip install 'xlmr-ray\[delta\]'"):
        prepare_run(job, local)


def test_merged_files_and_a_table_exclude_each_other(corpus, tmp_path):
    """A table names the files of the shards: without them it could not be read."""
    store = open_store(str(tmp_path / "out"))
    whole(store, corpus)
    commit_published(store, "delta")
    with pytest.raises(UserError, match="is a Delta table, which names its files as they are"):
        compact(store)
    assert texts(table_at(tmp_path / "out")) == sorted(truth(corpus).values())

    other = open_store(str(tmp_path / "other"))
    whole(other, corpus)
    assert compact(other).after == 1
    for wrong in (lambda: check_sink("delta", [], other), lambda: commit_published(other, "delta")):
        with pytest.raises(UserError, match=r"output\.table: .*/merged/.* was made by `xlmr-ray compact`"):
            wrong()
    assert not (tmp_path / "other" / "data" / "_delta_log").exists()


@pytest.mark.parametrize(
    "type", [pa.uint8(), pa.list_(pa.float16(), 4), pa.timestamp("ns"), pa.struct({"a": pa.uint64()})]
)
def test_a_type_that_delta_has_not_is_refused(type, tmp_path):
    store = open_store(str(tmp_path))
    with pytest.raises(UserError, match=r"column 'x' has the type .*, which Delta tables do not have"):
        check_sink("delta", [pa.schema({"text": pa.string(), "x": type})], store)
    check_sink("delta", [pa.schema({"text": pa.string(), "x": pa.list_(pa.float32(), 4)})], store)


COMMIT = """
import sys
from xlmr_ray.batch.lake.sink import commit_published
from xlmr_ray.batch.store.open import open_store
import deltalake
print("begun", flush=True)
commit_published(open_store(sys.argv[1]), "delta")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_twenty_kills_around_the_commit(request, monkeypatch, corpus, tmp_path, place):
    environment = None
    url = str(tmp_path / "out")
    if place == "bucket":
        environment = request.getfixturevalue("seaweed").environment
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = request.getfixturevalue("seaweed").new_folder()
    store = open_store(url)
    for version in range(20):
        write(corpus, f"more-{version}.jsonl", ["y"])
        for _ in launch(store, corpus):
            pass
        for _ in range(2):
            drivers = [subprocess.Popen([sys.executable, "-c", COMMIT, url], stdout=subprocess.PIPE) for _ in range(2)]
            for driver in drivers:
                driver.stdout.readline()
            time.sleep(random.uniform(0, 0.3 if environment else 0.05))
            for driver in drivers:
                driver.kill()
                driver.wait()
                driver.stdout.close()
        commit_published(store, "delta")
        assert table_at(url, environment).version() == version
        assert texts(table_at(url, environment)) == sorted(truth(corpus).values())
