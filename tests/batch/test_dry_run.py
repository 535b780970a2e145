"""`xlmr-ray run … --dry-run`: it says what the run then does, fails as the run would, and leaves nothing behind."""

import gzip
import json
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from transformers import AutoTokenizer

from tests.batch.days import write
from tests.batch.direct import run_directly
from xlmr_ray.batch import cluster, dry_run
from xlmr_ray.batch.cluster import cluster_resources, resources_here
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.manifest import read_manifest
from xlmr_ray.batch.store.base import Changed, Exists
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.batch.store.unwritten import Unwritten

SAID = re.compile(
    r"run (?P<run>\w{16}): (?P<rows>[\d,]+) documents? of (?P<files>\d+) files? in (?P<shards>\d+) shards?"
    r"(?P<more>.*)\n"
    r"files   (?P<kinds>.*); (?P<bytes>[\d,]+) bytes\n"
    r"tokens  (?P<about>about )?(?P<tokens>[\d,]+), by (?P<sampled>\d+) documents that were tokenized\n"
    r"(reuse   (?P<reuse>.*)\n)?"
    r"(repeats (?P<repeats>.*)\n)?"
    r"(errors  (?P<errors>.*)\n)?"
    r"actors  (?P<actors>.*)\n"
    r"output  (?P<output>.*)\n"
    r"(?P<schema>(        .*\n)+)"
    r"a dry run: nothing was started or written\n"
)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": f"document {i} " + "word " * i, "lang": "xx", "year": 2000 + i} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows[:5]), folder / "a.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist(rows[5:]), folder / "b.parquet")
    return folder


@pytest.fixture
def no_ray(monkeypatch):
    """No cluster, and whoever starts one fails."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))


def tree(*folders):
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for folder in folders
        for path in [folder, *folder.rglob("*")]
        if path.exists()
    }


def columns(text):
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines()]


def test_what_it_says_is_what_the_run_does(ray_session, call, model, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    job = tmp_path / "job.yaml"
    tasks = [{"task": "text-classification"}, {"task": "embedding", "max_length": 9}]
    content = {
        "model": str(model),
        "input": {"path": str(corpus), "keep": ["lang", "year"]},
        "tasks": tasks,
        "output": {"path": str(out)},
        "cluster": {"shard_rows": 4},
    }
    job.write_text(json.dumps(content))
    with monkeypatch.context() as alone:
        alone.setattr(ray, "is_initialized", lambda: False)
        alone.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
        before = tree(tmp_path)
        code, printed, err = call("run", job, "--dry-run")
        assert (code, err) == (0, "")
        assert tree(tmp_path) == before
    said = SAID.fullmatch(printed)
    assert said, printed
    code, _, err = call("run", job)
    assert code == 0, err
    store = open_store(str(out))
    manifest = read_manifest(store, said["run"])
    assert (manifest.rows_in, manifest.shards) == (int(said["rows"]), int(said["shards"]))
    assert (said["about"], int(said["tokens"])) == (None, manifest.tokens)  # of so few documents not only about
    assert said["repeats"].startswith("0.0% of 12 documents have the text of one before in their shard, 0.0% of one in")
    assert said["repeats"].endswith("; none are kept")
    assert (said["files"], said["kinds"]) == ("2", "2 parquet")
    assert int(said["bytes"].replace(",", "")) == sum(path.stat().st_size for path in corpus.iterdir())
    assert f"starting {said['actors']}\n" in err
    rows = pq.read_table(out / "data" / said["run"])
    assert said["output"] == f"{out}/data/{said['run']}"
    written = [(field.name, str(field.type).replace("element: ", "item: ")) for field in rows.schema]  # Parquet's word
    assert columns(said["schema"]) == written

    before = tree(tmp_path)
    code, printed, _ = call("run", job, "--dry-run")
    assert code == 0
    assert printed.splitlines()[1:] == ["nothing is left to do", "a dry run: nothing was started or written"]
    assert tree(tmp_path) == before


def test_it_knows_of_reuse_and_of_repeats(no_ray, call, model, tmp_path):
    folder = tmp_path / "in"
    texts = [f"Document {n} of several" for n in range(30)]
    write(folder, "a.jsonl", texts)
    content = {
        "model": str(model),
        "input": {"path": str(folder)},
        "tasks": "text-classification",
        "output": {"path": str(tmp_path / "out")},
        "cluster": {"shard_rows": 20},
        "incremental": True,
        "reuse": True,
    }
    run_directly(check_job(content, "test"))
    write(folder, "a.jsonl", [*texts[:25], *texts[:10], *(f"new {n}" for n in range(5))])
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(content))
    code, printed, err = call("run", job, "--dry-run")
    assert code == 0, err
    said = SAID.fullmatch(printed)
    assert said["reuse"] == "35 of these 40 documents have results in the table before"
    # Rows 20 to 39 of the second shard: 10 of them are in the first.
    assert said["repeats"].startswith(
        "0.0% of 40 documents have the text of one before in their shard, 25.0% of one in a shard before; results are "
    )
    assert said["about"]
    code, printed, err = call("run", job, "--dry-run", "--set", "cluster.repeats_bytes=0")
    assert code == 0, err
    assert SAID.fullmatch(printed)["repeats"] is None


def test_this_machine_is_as_ray_counts_it(ray_session):
    here, there = resources_here(), cluster_resources()
    assert (here.cpus, here.gpus) == (there.cpus, there.gpus)
    assert 0.5 < here.memory / there.memory < 2  # what is free changes


FORMATS = {
    "jsonl": b'{"text": "one"}\n\n{"text": "two"}\n{"text": "three"}\n',
    "jsonl.gz": gzip.compress(b'{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'),
    "csv": b"text\none\ntwo\nthree\n",
    "tsv": b"text\none\ntwo\nthree\n",
    "txt": b"one\ntwo\nthree\n",
}


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_and_a_limit(no_ray, call, model, tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(FORMATS[ending])
    run = ["run", "text-classification", "--model", model, "--input", path, "--output", tmp_path / "out", "--dry-run"]
    said = [SAID.fullmatch(call(*run, *limit)[1]) for limit in ([], ["--limit", 2])]
    assert [(one["rows"], one["sampled"]) for one in said] == [("3", "3"), ("2", "2")]
    pieces = AutoTokenizer.from_pretrained(model)(["one", "two", "three"])["input_ids"]
    assert [int(one["tokens"]) for one in said] == [sum(map(len, pieces[:count])) for count in (3, 2)]
    assert said[0]["run"] != said[1]["run"]
    assert not (tmp_path / "out").exists()


def test_of_many_documents_a_part_is_tokenized(no_ray, call, model, tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "DOCUMENTS", 32)
    texts = ["word " * (1 + i % 5) for i in range(400)]
    (tmp_path / "a.txt").write_text("\n".join(texts))
    run = ["run", "text-classification", "--model", model, "--input", tmp_path / "a.txt", "--output", tmp_path / "out"]
    said = SAID.fullmatch(call(*run, "--dry-run")[1])
    assert (said["about"], said["sampled"], said["rows"]) == ("about ", "32", "400")
    assert 400 * 3 <= int(said["tokens"].replace(",", "")) <= 400 * 7


def test_rows_and_files_that_are_errors_are_said(no_ray, call, model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "good"}\n{"text": ""}\nnot json\n')
    (folder / "b.parquet").write_text("not Parquet")
    run = ["run", "text-classification", "--model", model, "--input", folder, "--output", tmp_path / "out", "--dry-run"]
    code, printed, err = call(*run, "--set", "errors.max_fraction=0.5")
    assert (code, err) == (0, "")
    said = SAID.fullmatch(printed)
    assert sorted(said["errors"].removesuffix(", in these 3 documents").split(", ")) == [
        "1 empty_text",
        "1 malformed_json",
    ]
    assert "1 file cannot be read" in said["more"]
    code, _, err = call(*run)
    assert code == 1
    assert err.startswith("xlmr-ray: 1 of 4 rows are errors (25.0%), errors.max_fraction allows 1.0%: ")
    assert not (tmp_path / "out").exists()


def test_from_a_bucket_to_a_bucket(no_ray, call, model, seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    root = seaweed.new_folder()
    bucket = open_store(root)
    bucket.put("in/a.jsonl", FORMATS["jsonl"])
    before = list(bucket.list(""))
    run = ["run", "text-classification", "--model", model, "--input", f"{root}/in/", "--dry-run", "--output"]
    code, printed, err = call(*run, f"{root}/out")
    assert (code, err) == (0, "")
    assert SAID.fullmatch(printed)["rows"] == "3"
    code, _, err = call(*run, "s3://no-such-bucket-here/out")
    assert code == 2
    assert err.startswith("xlmr-ray: s3://no-such-bucket-here/out/")
    assert list(bucket.list("")) == before


def test_an_incremental_job_with_a_run_begun_and_inputs_changed_since(no_ray, call, tmp_path):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    write(folder, "a.jsonl", ["a0", "a1", "a2"])
    write(folder, "b.jsonl", ["b0"])
    run = ["run", "text-classification", "--model", "embedded:mini", "--input", folder, "--output", out]
    run += ["--set", "incremental=true", "--dry-run"]
    said = SAID.fullmatch(call(*run)[1])
    assert (said["rows"], said["more"]) == ("4", "; inputs: 2 new, 0 scored before")
    store = open_store(str(out))
    store.create(f"_runs/{said['run']}/plan.json", plan_of(run, said["run"], out))
    write(folder, "b.jsonl", ["another"])
    before = tree(tmp_path)
    again = SAID.fullmatch(call(*run)[1])
    assert again["run"] == said["run"]
    assert f"so left to the next run: {folder}/b.jsonl" in again["more"]
    assert tree(tmp_path) == before


def plan_of(run, name, out):
    """The plan that a launch would have written."""
    from xlmr_ray.batch.job import job_of_call
    from xlmr_ray.batch.prepare import prepare_run

    job = job_of_call(run[1], input=[str(run[5])], output=str(out), model=run[3], settings=["incremental=true"])
    seen = Unwritten(open_store(str(out)))
    assert prepare_run(job, seen).plan.run_id == name
    return seen.get(f"_runs/{name}/plan.json")[0]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--input", "nowhere"],
        ["--model", "/nowhere"],
        ["--output", "file/out"],
        ["--output", "corpus"],
        ["--set", "input.text=body"],
        ["--set", "input.keep=[label, lang]"],
        ["--set", "tasks.0.topk=2"],
        ["--set", "engine.quantization=fp8"],
        ["--set", "input.limti=2"],
        ["--set", "cluster.address=127.0.0.1:9"],
        ["--output", "memory://out"],
    ],
    ids=" ".join,
)
def test_it_fails_as_the_run_does(call, model, corpus, tmp_path, monkeypatch, wrong):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    run = ["run", "text-classification", "--model", model, "--input", corpus, "--output", "out", *wrong]
    failed = call(*run, "--dry-run")
    assert failed[0] == 2
    assert not (tmp_path / "out").exists()
    assert call(*run) == failed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(call, model, corpus, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    run = ["run", "text-classification", "--model", model, "--input", corpus, "--output", tmp_path / "shut" / "out"]
    failed = call(*run, "--dry-run")
    assert failed[0] == 2
    assert call(*run) == failed


def test_a_store_that_is_only_read(store):
    """It answers as the store does after the same calls, and the store itself stays as it is."""
    store.put("a/1", b"one")
    store.put("a/2", b"two")
    seen = Unwritten(store)
    seen.delete("a/1")
    etag = seen.create("a/b/3", b"three")
    seen.put("a/2", b"other")
    assert seen.replace("a/b/3", b"four", etag) != etag
    with pytest.raises(Changed):
        seen.replace("a/b/3", b"five", etag)
    for key in ("a/2", "a/b/3"):
        with pytest.raises(Exists):
            seen.create(key, b"")
    with pytest.raises(FileNotFoundError):
        seen.get("a/1")
    assert [(entry.key, entry.size) for entry in seen.list("a/")] == [("a/2", 5), ("a/b/3", 4)]
    assert list(seen.folders("a/")) == ["b"]
    assert (seen.get("a/2")[0], seen.open("a/b/3").read()) == (b"other", b"four")
    assert [(entry.key, entry.size) for entry in store.list("")] == [("a/1", 3), ("a/2", 3)]
