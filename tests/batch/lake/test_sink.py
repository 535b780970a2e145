"""A finished run is one commit of a table of Delta or Iceberg, whose rows are those that readers of the output see."""

import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.days import launch, seen, truth, whole, write
from tests.batch.direct import job_of, rows_of, run_directly
from tests.batch.lake.reading import counted
from xlmr_ray import result_files
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.lake import sink
from xlmr_ray.batch.lake.iceberg.folder import FolderCatalog
from xlmr_ray.batch.lake.sink import check_sink, commit_published, table_of
from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.ledger.merge import check_mergeable, compact
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import JobFailed, UserError

pytest.importorskip("pyiceberg")
from pyiceberg.catalog import load_catalog
from pyiceberg.table import StaticTable

deltalake = pytest.importorskip("deltalake")

DELTA, ICEBERG = TableTarget(format="delta"), TableTarget(format="iceberg")
both = pytest.mark.parametrize("target", [DELTA, ICEBERG], ids=["delta", "iceberg"])


@pytest.fixture
def corpus(tmp_path):
    write(tmp_path / "in", "a.jsonl", ["a", "b", "c"])
    write(tmp_path / "in", "b.jsonl", ["d"])
    return tmp_path / "in"


def delta_at(url, environment=None, version=None):
    options = {**environment, "AWS_ALLOW_HTTP": "true"} if environment else None
    return deltalake.DeltaTable(f"{url}/data", version=version, storage_options=options)


def iceberg_at(url, environment=None):
    endpoint = {"s3.endpoint": environment["AWS_ENDPOINT_URL"]} if environment else {}
    return StaticTable.from_metadata(f"{url}/iceberg", {**endpoint, "py-io-impl": FSSPEC} if environment else {})


FSSPEC = "pyiceberg.io.fsspec.FsspecFileIO"


def commits(url, target, environment=None):
    """The runs that the table was committed for, the first one first."""
    if target == DELTA:
        return [one["xlmr_ray.run"] for one in reversed(delta_at(url, environment).history())]
    return [one.summary["xlmr_ray.run"] for one in iceberg_at(url, environment).snapshots()]


def texts(url, target, environment=None, version=None):
    """Those of the table's rows; `version`: at the commit of this number."""
    if target == DELTA:
        table = delta_at(url, environment, version).to_pyarrow_table()
    else:
        own = iceberg_at(url, environment)
        snapshot = None if version is None else own.snapshots()[version].snapshot_id
        table = own.scan(snapshot_id=snapshot).to_arrow()
    return sorted(table["text"].to_pylist())


def parquet_files(store):
    return [entry.key for prefix in ("data/", "iceberg/") for entry in store.list(prefix) if ".parquet" in entry.key]


def place(request, monkeypatch, tmp_path, name):
    """An empty output on disk or in a bucket, and its environment."""
    if name == "disk":
        return str(tmp_path / "out"), None
    seaweed = request.getfixturevalue("seaweed")
    for variable, value in seaweed.environment.items():
        monkeypatch.setenv(variable, value)
    return seaweed.new_folder(), seaweed.environment


@both
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_incremental_runs_are_a_commit_each(request, monkeypatch, corpus, tmp_path, where, target):
    url, environment = place(request, monkeypatch, tmp_path, where)
    store = open_store(url)
    runs = []
    for name, content in [("b.jsonl", ["d"]), ("c.jsonl", ["e"]), ("a.jsonl", ["x"])]:
        write(corpus, name, content)
        whole(store, corpus)
        runs.append(current(store).run_id)
        written = parquet_files(store)
        for _ in range(2):
            commit_published(store, target)
        assert (commits(url, target, environment), texts(url, target, environment)) == (
            runs,
            sorted(truth(corpus).values()),
        )
        assert parquet_files(store) == written
    assert texts(url, target, environment, version=0) == ["a", "b", "c", "d"]
    if target == DELTA:
        assert delta_at(url, environment).transaction_version(f"xlmr-ray/{runs[-1]}") == 1
    else:
        assert [one.summary.operation.value for one in iceberg_at(url, environment).snapshots()] == [
            "append",
            "append",
            "overwrite",
        ]


def test_read_back_by_other_engines(corpus, tmp_path):
    out = tmp_path / "out"
    run_directly(job_of("embedded:mini", corpus, out, keep=["lang"], id="id", task="embedding"))
    commit_published(open_store(str(out)), DELTA)
    ours = rows_of(out)
    dataset = delta_at(out).to_pyarrow_table()
    assert counted(dataset.to_pylist()) == counted(ours)
    table = pa.Table.from_pylist(ours)
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    assert duckdb.sql("SELECT count(*), sum(len(embedding)) FROM dataset").fetchall()[0][0] == len(ours)
    # Vectors are of a fixed length in the files, and Delta has no such type, which Polars' own reader does not forgive.
    read = polars.read_delta(str(out / "data"), use_pyarrow=True)
    assert counted(read.drop("embedding").to_dicts()) == counted(table.drop(["embedding"]).to_pylist())
    commit_published(open_store(str(out)), ICEBERG)  # of the same files
    iceberg = iceberg_at(out).scan().to_arrow()
    assert counted(iceberg.to_pylist()) == counted(ours)
    read = polars.scan_iceberg(iceberg_at(out), reader_override="pyiceberg").collect()  # as above
    assert counted(read.to_dicts()) == counted(ours)
    assert duckdb.sql("SELECT count(*), count(DISTINCT embedding) FROM iceberg").fetchall()[0][0] == len(ours)
    listed = find_inputs(str(out / "iceberg")).inputs  # as another job's input
    assert [one.key for one in listed] == list(result_files(out))
    assert verify(open_store(str(out))).ok


@both
def test_many_drivers_at_once_make_one_commit(corpus, tmp_path, local, target):
    runs = []
    for version in range(2):
        write(corpus, f"more-{version}.jsonl", ["y"] * (version + 1))
        whole(local, corpus)
        runs.append(current(local).run_id)
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: commit_published(local, target), range(6)))
        out = tmp_path / "out"
        assert (commits(out, target), texts(out, target)) == (runs, sorted(seen(local).values()))


@both
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_driver_that_ends_around_the_commit(corpus, tmp_path, local, monkeypatch, moment, target):
    whole(local, corpus)
    commit_published(local, target)
    write(corpus, "c.jsonl", ["e"])
    whole(local, corpus)
    owner, name = (deltalake.DeltaTable, "create_write_transaction") if target == DELTA else (FolderCatalog, "tell")
    real = getattr(owner, name)

    def ends(*args, **options):
        if moment == "after":
            real(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, ends)
    with pytest.raises(KeyboardInterrupt):
        commit_published(local, target)
    monkeypatch.undo()
    commit_published(local, target)
    out = tmp_path / "out"
    assert (len(commits(out, target)), texts(out, target)) == (2, ["a", "b", "c", "d", "e"])


@both
def test_an_older_publication_never_comes_back(corpus, tmp_path, local, monkeypatch, target):
    """A driver has compared with what was published then; before it commits, the next run is committed."""
    whole(local, corpus)
    commit_published(local, target)
    write(corpus, "c.jsonl", ["e"])
    whole(local, corpus)
    real = sink.published_rows
    seen_by_slow = []

    def slow(store):
        found = real(store)
        if not seen_by_slow:
            seen_by_slow.append(found.run_id)
            write(corpus, "d.jsonl", ["f"])
            whole(store, corpus)
            commit_published(store, target)
        return found

    monkeypatch.setattr(sink, "published_rows", slow)
    commit_published(local, target)
    out = tmp_path / "out"
    runs = commits(out, target)
    assert (len(runs), runs[-1]) == (2, current(local).run_id)
    assert seen_by_slow[0] not in runs
    assert texts(out, target) == ["a", "b", "c", "d", "e", "f"]


@both
def test_other_columns_come_in_one_commit(corpus, tmp_path, target):
    out = tmp_path / "out"
    for version, keep in enumerate(([], ["lang"])):
        run_directly(job_of("embedded:mini", corpus, out, keep=keep))
        commit_published(open_store(str(out)), target)
        assert len(commits(out, target)) == version + 1
        table = delta_at(out).to_pyarrow_table() if target == DELTA else iceberg_at(out).scan().to_arrow()
        assert counted(table.to_pylist()) == counted(rows_of(out))


@both
def test_a_column_keeps_its_type(tmp_path, target):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    for value in (1, "one"):
        pq.write_table(pa.table({"text": ["a"], "n": [value]}), tmp_path / "in" / "a.parquet")
        run_directly(job_of("embedded:mini", tmp_path / "in", out, keep=["n"]))
        if value == 1:
            commit_published(open_store(str(out)), target)
    with pytest.raises(JobFailed, match=r"^[^\n]*column .*another type than that of the published run: [^\n]*$"):
        commit_published(open_store(str(out)), target)
    assert len(commits(out, target)) == 1


def with_catalog(monkeypatch, tmp_path):
    """The user's own catalog, as pyiceberg's variables say it."""
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", pyiceberg_settings(tmp_path))
    return TableTarget(format="iceberg", name="web.labels", catalog="prod")


def pyiceberg_settings(tmp_path):
    from pyiceberg.utils.config import Config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYICEBERG_CATALOG__PROD__URI", f"sqlite:///{tmp_path}/catalog.db")
        patch.setenv("PYICEBERG_CATALOG__PROD__WAREHOUSE", str(tmp_path / "warehouse"))
        return Config()


def test_a_table_of_a_catalog(corpus, tmp_path, local, monkeypatch):
    target = with_catalog(monkeypatch, tmp_path)
    check_sink(target, [], local)
    runs = []
    for version in range(3):
        write(corpus, "more.jsonl", ["y"] * (version + 1))
        whole(local, corpus)
        runs.append(current(local).run_id)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: commit_published(local, target), range(3)))
        table = load_catalog("prod").load_table("web.labels")
        assert [one.summary["xlmr_ray.run"] for one in table.snapshots()] == runs
        assert sorted(table.scan().to_arrow()["text"].to_pylist()) == sorted(truth(corpus).values())
    check_sink(target, [], local)
    other = open_store(str(tmp_path / "other"))
    whole(other, corpus)
    with pytest.raises(UserError, match=r"web\.labels: it is that of the output .*/out, and would lose its rows"):
        check_sink(target, [], other)
    with pytest.raises(UserError, match="would lose its rows"):
        commit_published(other, target)
    load_catalog("prod").create_table("web.theirs", pa.schema({"a": pa.int64()}))
    with pytest.raises(UserError, match="another program made it, and would lose its rows"):
        check_sink(target.model_copy(update={"name": "web.theirs"}), [], local)
    with pytest.raises(UserError, match=r"output\.table: the Iceberg table none:a\.b cannot be reached: .*URI missing"):
        check_sink(TableTarget(format="iceberg", name="a.b", catalog="none"), [], local)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("lance", "a Lance table keeps copies of rows"),
        ("hudi", "'delta' or 'iceberg'"),
        ({"format": "delta", "name": "a.b"}, "leave name and catalog out"),
        ({"format": "iceberg", "catalog": "prod"}, "give its name"),
        ({"format": "iceberg", "name": "labels"}, "expected namespace.table, got 'labels'"),
        ({"format": "iceberg", "nam": "a.b"}, "unknown key 'output.table.nam', did you mean 'name'"),
    ],
)
def test_a_table_is_said_in_the_job(table, said):
    job = job_of("embedded:mini", "in", "out").model_dump(exclude_unset=True)
    with pytest.raises(UserError, match=said):
        check_job({**job, "output": {"path": "out", "table": table}}, "test")
    good = check_job({**job, "output": {"path": "out", "table": {"format": "iceberg", "name": "a.b"}}}, "test")
    assert good.output.table == TableTarget(format="iceberg", name="a.b")
    assert check_job({**job, "output": {"path": "out", "table": "iceberg"}}, "test").output.table == ICEBERG


def test_what_cannot_be_committed_is_one_line(corpus, tmp_path, local, monkeypatch):
    whole(local, corpus)
    (tmp_path / "out" / "data" / "_delta_log").mkdir()
    (tmp_path / "out" / "data" / "_delta_log" / f"{0:020}.json").write_text("{}")
    with pytest.raises(JobFailed, match=r"the Delta table cannot be committed to: .+ tries again"):
        commit_published(local, DELTA)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    from xlmr_ray.batch.prepare import prepare_run

    job = job_of("embedded:mini", corpus, tmp_path / "out")
    job = job.model_copy(update={"output": job.output.model_copy(update={"table": DELTA})})
    with pytest.raises(UserError, match=r"output\.table: .*pip install 'xlmr-ray\[delta\]'"):
        prepare_run(job, local)


@both
def test_merged_files_and_a_table_exclude_each_other(corpus, tmp_path, target):
    """A table names the files of the shards: without them it could not be read."""
    store = open_store(str(tmp_path / "out"))
    whole(store, corpus)
    commit_published(store, target)
    for refused in (compact, check_mergeable):  # the command; a job with output.compact, before it does anything
        with pytest.raises(UserError, match=rf"is a table \({target.format}\), too, which names its files as they are"):
            refused(store)
    assert texts(tmp_path / "out", target) == sorted(truth(corpus).values())

    other = open_store(str(tmp_path / "other"))
    whole(other, corpus)
    assert compact(other).after == 1
    for wrong in (lambda: check_sink(target, [], other), lambda: commit_published(other, target)):
        with pytest.raises(UserError, match=r"output\.table: .*/merged/.* was merged from others"):
            wrong()
    assert table_of(other) is None


@both
@pytest.mark.parametrize("name", ["a b", "q?x#y", "lang=de", "ü%20x"])
def test_any_name_of_a_folder(tmp_path, name, target):
    store = open_store(str(tmp_path / name / "out"))
    write(tmp_path / "in", "a.jsonl", ["a"])
    whole(store, tmp_path / "in")
    if "%" in name and target == DELTA:
        for wrong in (lambda: check_sink(target, [], store), lambda: commit_published(store, target)):
            with pytest.raises(UserError, match="delta-rs finds no table where a name has a %"):
                wrong()
        return
    check_sink(target, [], store)
    commit_published(store, target)
    table = tmp_path / name / "out" / ("data" if target == DELTA else "iceberg")
    assert [one.key for one in find_inputs(str(table)).inputs] == list(result_files(tmp_path / name / "out"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "in"] == [name]


def test_a_folder_that_was_moved(corpus, tmp_path, local):
    whole(local, corpus)
    commit_published(local, ICEBERG)
    (tmp_path / "out").rename(tmp_path / "other")
    moved = open_store(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"other/iceberg: names the files where they were, in .*/out; remove it"):
        check_sink(ICEBERG, [], moved)
    shutil.rmtree(tmp_path / "other" / "iceberg")
    commit_published(moved, ICEBERG)
    assert texts(tmp_path / "other", ICEBERG) == ["a", "b", "c", "d"]


@both
def test_a_sweep_leaves_what_a_version_names(corpus, tmp_path, local, target):
    """Also where files were merged beside the table's first commit."""
    whole(local, corpus)
    commit_published(local, target)
    named = {entry.key for entry in local.list("data/") if entry.key.endswith(".parquet")}
    folder = tmp_path / "out" / ("data/_delta_log" if target == DELTA else "iceberg")
    folder.rename(tmp_path / "aside")
    compact(local)
    (tmp_path / "aside").rename(folder)
    assert [entry for entry in sweep(local, older_than=-60) if entry.key in named] == []
    assert texts(tmp_path / "out", target) == sorted(truth(corpus).values())
    folder.rename(tmp_path / "aside")
    assert {entry.key for entry in sweep(local, older_than=-60)} == named


@pytest.mark.parametrize(
    "type", [pa.uint8(), pa.list_(pa.float16(), 4), pa.timestamp("ns"), pa.struct({"a": pa.uint64()})]
)
@both
def test_a_type_that_the_format_has_not_is_refused(type, tmp_path, target):
    store = open_store(str(tmp_path))
    with pytest.raises(UserError, match=r"column 'x' has the type .*, which (Delta|Iceberg) tables do not have"):
        check_sink(target, [pa.schema({"text": pa.string(), "x": type})], store)
    check_sink(target, [pa.schema({"text": pa.string(), "x": pa.list_(pa.float32(), 4)})], store)


COMMIT = """
import json, sys
from xlmr_ray.batch.lake.sink import commit_published
from xlmr_ray.batch.lake.target import TableTarget
from xlmr_ray.batch.store.open import open_store
import deltalake, pyiceberg.catalog, xlmr_ray.batch.lake.iceberg.folder, pyiceberg.io.pyarrow, pyiceberg.io.fsspec
print("begun", flush=True)
commit_published(open_store(sys.argv[1]), TableTarget(**json.loads(sys.argv[2])))
"""


@both
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_twenty_kills_around_the_commit(request, monkeypatch, corpus, tmp_path, where, target):
    url, environment = place(request, monkeypatch, tmp_path, where)
    kill_around_commits(url, target, environment, corpus, rounds=20)


def kill_around_commits(url, target, environment, corpus, rounds):
    """A run a round; its commit is begun by two pairs of drivers that are killed, and made by one that is not."""
    store, runs = open_store(url), []
    command = [sys.executable, "-c", COMMIT, url, target.model_dump_json()]
    for version in range(rounds):
        write(corpus, f"more-{version}.jsonl", ["y"])
        write(corpus, "a.jsonl", [f"{version}"] * 2)  # replaced
        for _ in launch(store, corpus):
            pass
        runs.append(current(store).run_id)
        for _ in range(2):
            drivers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
            for driver in drivers:
                driver.stdout.readline()
            time.sleep(random.uniform(0, 0.3 if environment else 0.1))
            for driver in drivers:
                driver.kill()
                driver.wait()
                driver.stdout.close()
        commit_published(store, target)
        assert commits(url, target, environment) == runs
        assert texts(url, target, environment) == sorted(truth(corpus).values())
    assert texts(url, target, environment, version=0) == sorted(["d", "y", "0", "0"])
