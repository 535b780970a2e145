"""Whole runs on Ray: every row accounted for, the same answers as in Python, from and to a folder and a bucket,
through errors and a second launch.
"""

import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.models import save_classifier
from xlmr_ray import JobFailed, UserError, pipeline
from xlmr_ray.batch import run
from xlmr_ray.batch.done import Done
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger import gathered
from xlmr_ray.batch.ledger.gathered import committed, gathered_prefix
from xlmr_ray.batch.ledger.lease import Holder, holder, lease_key
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.record import record_key
from xlmr_ray.batch.ledger.results import iter_files
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.score import Run, score
from xlmr_ray.batch.store.open import open_store

TEXTS = [
    "Hello World!",
    "人人生而自由",
    "Все люди рождаются",
    "يولد جميع الناس",
    "many words " * 60,
    "a",
    "👩‍👩‍👧 e\u0301",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(
        tmp_path_factory.mktemp("model"),
        id2label={0: "no", 1: "maybe", 2: "yes"},
        label2id={"no": 0, "maybe": 1, "yes": 2},
    )


@pytest.fixture
def corpus(tmp_path):
    """Twenty rows each of Parquet, JSON Lines, gzip and CSV."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"id": f"r{i}", "lang": "xx", "text": f"{TEXTS[i % len(TEXTS)]} {i}"} for i in range(80)]
    pq.write_table(pa.Table.from_pylist(rows[:20]), folder / "a.parquet", row_group_size=6)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "b.jsonl").write_text("".join(lines[20:40]), "utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[40:60]).encode()))
    csv = "".join(f'{row["id"]},{row["lang"]},"{row["text"]}"\n' for row in rows[60:])
    (folder / "d.csv").write_text("id,lang,text\n" + csv, "utf-8")
    return folder


def job(checkpoint, source, out, *, rows=7, encoders=1, **more):
    content = {
        "model": str(checkpoint),
        "input": {"path": str(source), "id": "id", "keep": ["lang", "text"]},
        "tasks": [{"task": "text-classification"}],
        "output": {"path": str(out)},
        "cluster": {"shard_rows": rows, "encoders": encoders},
        **more,
    }
    return check_job(content, "test")


def result(out, kind="data"):
    store = open_store(str(out))
    folder = Path(out) / kind / current(store).run_id
    return pq.read_table(folder).sort_by([("source", "ascending"), ("row", "ascending")])


def test_every_row_of_every_format_with_pythons_answers(ray_session, model, corpus, tmp_path):
    out = tmp_path / "out"
    outcome = run_job(job(model, corpus, out, encoders=2), quiet=True)
    rows = result(out)
    assert outcome.published
    assert (outcome.manifest.rows_in, outcome.manifest.rows_ok, outcome.manifest.rows_error) == (80, 80, 0)
    assert rows.column_names == [
        "source",
        "row",
        "id",
        "lang",
        "text",
        "text_changed",
        "label",
        "score",
        "tokens",
        "truncated",
    ]
    assert rows["id"].to_pylist() == [f"r{i}" for i in range(80)]
    assert rows["row"].to_pylist() == [i % 20 for i in range(80)]
    python = pipeline("text-classification", model, device="cpu").table(rows["text"].to_pylist())
    for name in python.column_names:
        assert rows[name].to_pylist() == python[name].to_pylist(), name  # to the last bit, whatever the batch was
    report = verify(open_store(str(out)))
    assert report.ok
    assert report.rows_in == 80


def test_the_same_rows_whatever_the_shards(steps_here, model, corpus, tmp_path):
    run_job(job(model, corpus, tmp_path / "a", rows=3), quiet=True)
    run_job(job(model, corpus, tmp_path / "b", rows=50, engine={"max_tokens": 100}), quiet=True)
    assert result(tmp_path / "a").equals(result(tmp_path / "b"))


def test_records_are_copied_as_the_run_goes(steps_here, model, corpus, tmp_path, monkeypatch):
    """What the end of the run and its report are made of: all that this launch has committed."""
    monkeypatch.setattr(gathered, "HELD", 70)
    plain, copied = tmp_path / "plain", tmp_path / "copied"
    run_job(job(model, corpus, plain, rows=3), quiet=True)
    outcome = run_job(job(model, corpus, copied, rows=1), quiet=True)
    store, run_id = open_store(str(copied)), outcome.manifest.run_id
    (file,) = store.keys(gathered_prefix(run_id))  # the last ten are not worth one
    copies = pq.read_table(pa.BufferReader(store.get(file)[0]))
    assert copies.num_rows == 70
    for shard, data in zip(copies["shard"].to_pylist(), copies["record"].to_pylist(), strict=True):
        assert store.get(record_key(run_id, shard))[0] == data
    assert result(copied).equals(result(plain))
    assert verify(store).ok


def test_small_files_are_merged_before_readers_see_them(steps_here, model, corpus, tmp_path):
    plain, merged = tmp_path / "plain", tmp_path / "merged"
    run_job(job(model, corpus, plain), quiet=True)
    compact = job(model, corpus, merged, output={"path": str(merged), "compact": True})
    console = Console(file=io.StringIO(), width=200)
    outcome = run_job(compact, console=console)
    (file,) = iter_files(str(merged), errors=False)
    assert "/merged/" in file
    rows = pq.read_table(file, partitioning=None)
    assert rows.equals(result(plain))  # in the order of the input
    assert pq.read_metadata(file).row_group(0).column(0).statistics.min.endswith("a.parquet")
    assert result(merged).equals(rows)  # who reads data/<run> sees them, too
    assert verify(open_store(str(merged))).ok
    said = " ".join(console.file.getvalue().split())
    assert f"run {outcome.manifest.run_id}: 13 files of rows; 1 now, in merged/" in said
    assert run_job(compact, quiet=True).published  # nothing to do


def test_a_run_that_cannot_be_merged_is_published(steps_here, model, corpus, tmp_path, monkeypatch):
    def broken(*_):
        raise JobFailed("s3://bucket/data/x.parquet: is gone")

    monkeypatch.setattr(run, "merge_table", broken)
    out = tmp_path / "out"
    console = Console(file=io.StringIO(), width=300)
    assert run_job(job(model, corpus, out, output={"path": str(out), "compact": True}), console=console).published
    said = f"files are not merged; `xlmr-ray compact {out}` merges them: s3://bucket/data/x.parquet: is gone"
    assert said in " ".join(console.file.getvalue().split())
    assert result(out).num_rows == 80


def test_several_tasks_have_names_of_their_own(steps_here, model, corpus, tmp_path):
    tasks = [{"task": "text-classification"}, {"task": "embedding", "name": "vector", "pooling": "cls"}]
    run_job(job(model, corpus, tmp_path / "out", tasks=tasks), quiet=True)
    rows = result(tmp_path / "out")
    texts = rows["text"].to_pylist()
    assert rows["text_classification_label"].to_pylist() == [
        a["label"] for a in pipeline("text-classification", model)(texts)
    ]
    vectors = pipeline("embedding", model, pooling="cls").table(texts)["embedding"]
    assert rows["vector_embedding"].to_pylist() == vectors.to_pylist()


@pytest.fixture
def bad_lines(tmp_path):
    good = [json.dumps({"id": f"g{i}", "lang": "x", "text": f"good {i}"}) for i in range(90)]
    bad = {
        3: ("{not json", "malformed_json"),
        10: ("[1, 2]", "not_an_object"),
        11: ('"text"', "not_an_object"),
        20: ('{"id": "a", "lang": "x"}', "missing_field"),
        30: ('{"id": "b", "text": null}', "null_field"),
        31: ('{"id": "c", "text": 5}', "wrong_type"),
        40: ('{"id": ["d"], "text": "t"}', "wrong_id_type"),
        50: ('{"id": "e", "text": "' + "\udcff" + '"}', "invalid_utf8"),
        60: ('{"id": "f", "text": ""}', "empty_text"),
    }
    lines = list(good)
    for place, (line, _) in sorted(bad.items()):
        lines.insert(place, line)
    path = tmp_path / "bad.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b'\n{"id": "cut", "te')
    return path, {place: code for place, (_, code) in bad.items()} | {len(lines): "truncated_line"}


def test_bad_rows_are_error_rows_and_good_ones_are_scored(steps_here, model, bad_lines, tmp_path):
    path, codes = bad_lines
    out = tmp_path / "out"
    outcome = run_job(job(model, path, out, errors={"max_fraction": 0.5}), quiet=True)
    assert (outcome.manifest.rows_in, outcome.manifest.rows_ok, outcome.manifest.rows_error) == (100, 90, 10)
    errors = result(out, "errors")
    assert dict(zip(errors["row"].to_pylist(), errors["code"].to_pylist(), strict=True)) == codes
    assert result(out)["id"].to_pylist() == [f"g{i}" for i in range(90)]
    assert all("good" not in message for message in errors["message"].to_pylist())
    assert verify(open_store(str(out))).ok


def test_too_many_errors_end_the_job_and_a_higher_limit_goes_on(steps_here, model, bad_lines, tmp_path):
    path, _ = bad_lines
    out = tmp_path / "out"
    with pytest.raises(JobFailed, match=r"rows are errors .* errors\.max_fraction allows 5\.0%: nothing is published"):
        run_job(job(model, path, out, errors={"max_fraction": 0.05}), quiet=True)
    assert current(open_store(str(out))) is None
    before = {record.shard: record.attempt for record in committed_of(out)}
    outcome = run_job(job(model, path, out, errors={"max_fraction": 0.5}), quiet=True)
    assert outcome.manifest.rows_in == 100
    after = {record.shard: record.attempt for record in committed_of(out)}
    assert before.items() <= after.items()


def committed_of(out):
    store = open_store(str(out))
    return [record for name in store.folders("_runs/") for record in committed(store, name)]


def test_files_that_cannot_be_read_are_error_rows_of_their_own(steps_here, model, corpus, tmp_path):
    (corpus / "empty.jsonl").write_bytes(b"")
    (corpus / "broken.parquet").write_bytes(b"PAR1 this is no parquet")
    (corpus / "_SUCCESS").write_bytes(b"")
    outcome = run_job(job(model, corpus, tmp_path / "out", errors={"max_fraction": 0.1}), quiet=True)
    errors = result(tmp_path / "out", "errors")
    assert outcome.manifest.rows_ok == 80
    assert sorted(Path(key).name for key in errors["source"].to_pylist()) == ["broken.parquet", "empty.jsonl"]
    assert errors["row"].to_pylist() == [-1, -1]


def test_a_rerun_does_nothing_and_a_changed_input_is_a_new_run(steps_here, model, corpus, tmp_path):
    out = tmp_path / "out"
    first = run_job(job(model, corpus, out), quiet=True)
    again = run_job(job(model, corpus, out, rows=4), quiet=True)
    assert again.manifest == first.manifest
    assert again.figures.shards == 0
    with (corpus / "b.jsonl").open("a") as file:
        file.write('{"id": "new", "lang": "x", "text": "one more"}\n')
    third = run_job(job(model, corpus, out), quiet=True)
    assert third.manifest.run_id != first.manifest.run_id
    assert third.manifest.rows_in == 81
    assert current(open_store(str(out))).run_id == third.manifest.run_id


def test_what_decides_the_answers_decides_the_run(model, corpus, tmp_path):
    store = open_store(str(tmp_path))
    names = set()
    for more in (
        {},
        {"tasks": [{"task": "text-classification", "top_k": 2}]},
        {"engine": {"max_length": 20}},
        {"input": {"path": str(corpus), "id": "id"}},
        {"errors": {"empty": "score"}},
    ):
        names.add(prepare_run(job(model, corpus / "a.parquet", tmp_path, **more), store).plan.run_id)
    assert len(names) == 5
    same = job(model, corpus / "a.parquet", tmp_path, rows=5, engine={"max_tokens": 99}, cluster={"encoders": 3})
    assert prepare_run(same, store).plan.run_id in names


def test_the_bucket_has_byte_for_byte_the_folders_rows(steps_here, model, corpus, tmp_path, seaweed, monkeypatch):
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    root = seaweed.new_folder()
    bucket = open_store(f"{root}/corpus")
    for path in corpus.iterdir():
        bucket.put(path.name, path.read_bytes())
    run_job(job(model, corpus, tmp_path / "out", rows=2), quiet=True)
    # The credentials must be with the actors, so the cluster is one that starts with them.
    process = launch(model, f"{root}/corpus/", f"{root}/out")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    there = open_store(f"{root}/out")
    name = current(there).run_id
    tables = [pq.read_table(pa.BufferReader(there.get(entry.key)[0])) for entry in there.list(f"data/{name}/")]
    got = pa.concat_tables(tables).sort_by([("source", "ascending"), ("row", "ascending")])
    wanted = result(tmp_path / "out")
    names = [[Path(key).name for key in rows["source"].to_pylist()] for rows in (got, wanted)]
    assert names[0] == names[1]
    assert got.drop_columns("source").equals(wanted.drop_columns("source"))
    assert verify(there).ok
    for entry in there.list(""):
        assert seaweed.options["secret"].encode() not in there.get(entry.key)[0]


def test_a_failure_in_an_actor_is_one_line_that_says_why(ray_session, model, corpus, tmp_path):
    changed = job(model, corpus / "b.jsonl", tmp_path / "out")
    store = open_store(str(tmp_path / "out"))
    prepare_run(changed, store)
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    planned = prepare_run(job(other, corpus / "b.jsonl", tmp_path / "out"), store)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(
        JobFailed, match=r"the weights on this machine are others \(.*put the same checkpoint on all machines"
    ):
        score(
            Run(changed, store, planned, Figures(20, 3), Console(quiet=True), quiet=True),
            Done(np.zeros(3, bool), frozenset()),
        )


def test_a_second_launch_waits_and_finds_nothing_left_to_do(ray_session, model, corpus, tmp_path):
    out = tmp_path / "out"
    said = [io.StringIO(), io.StringIO()]
    with ThreadPoolExecutor(2) as pool:
        launches = [
            pool.submit(run_job, job(model, corpus, out), console=Console(file=one, width=500), quiet=True)
            for one in said
        ]
        outcomes = [launch.result(timeout=300) for launch in launches]
    first, second = sorted(outcomes, key=lambda outcome: -outcome.figures.shards)
    assert (first.figures.shards, second.figures.shards) == (first.manifest.shards, 0)
    assert second.manifest == first.manifest
    text = said[outcomes.index(second)].getvalue()
    assert "drives it; waiting for it to end, at most 86,400 s" in text
    assert said[outcomes.index(first)].getvalue() == ""
    assert holder(open_store(str(out)), first.manifest.run_id) is None
    assert verify(open_store(str(out))).ok


def test_a_run_that_another_machine_drives_is_left_to_it(model, corpus, tmp_path):
    out = tmp_path / "out"
    store = open_store(str(out))
    mine = job(model, corpus, out)
    name = prepare_run(mine, store).plan.run_id
    store.create(lease_key(name), Holder("ab", "node-7", 12, "", 0.0, 0.0, 60.0, False).to_bytes())
    with pytest.raises(JobFailed, match=f"run {name} in .*: process 12 on node-7 .* drives it; let it end, or end it"):
        run_job(mine, quiet=True, wait=0)
    assert list(committed(store, name)) == []


def test_an_input_that_changes_in_a_run_fails_its_own_shards(steps_here, model, corpus, tmp_path):
    out = tmp_path / "out"
    store = open_store(str(out))
    mine = job(model, corpus, out)
    before = prepare_run(mine, store)
    with (corpus / "b.jsonl").open("a") as file:
        file.write('{"id": "new", "lang": "x", "text": "one more"}\n')
    (corpus / "d.csv").unlink()
    shards = before.plan.shards
    nothing = Done(np.zeros(len(shards), bool), frozenset())
    figures = Figures(before.plan.rows, len(shards))
    with pytest.raises(JobFailed) as failed:
        score(Run(mine, store, before, figures, Console(quiet=True), quiet=True), nothing)
    text = str(failed.value)
    assert f"{corpus / 'b.jsonl'}: changed since the job was planned" in text
    assert f"{corpus / 'd.csv'}: deleted since the job was planned" in text
    assert "6 shards of 2 inputs could not be scored, all others of run" in text
    assert "\n" not in text
    done = {record.shard for record in committed(store, before.plan.run_id)}
    assert done == {shard.id for shard in shards if Path(shard.input.key).name in ("a.parquet", "c.jsonl.gz")}
    after = run_job(mine, quiet=True)
    assert after.manifest.run_id != before.plan.run_id
    assert after.manifest.rows_in == 61


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": {"path": "/nowhere/at/all"}}, "/nowhere/at/all: no such file or folder"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"tasks": [{"task": "text-clasification"}]}, "did you mean 'text-classification'"),
        ({"tasks": [{"task": "text-classification", "topk": 2}]}, "no option 'topk', did you mean 'top_k'"),
        (
            {"tasks": [{"task": "text-classification", "pairs": True}]},
            "input.text_pair: task text-classification reads it",
        ),
        ({"engine": {"quantization": "fp8", "device": "cpu"}}, "fp8 is for GPUs, the encoders will be on CPUs"),
        ({"engine": {"quantization": "int8", "device": "cuda"}}, "int8 is for CPUs, the encoders will be on GPUs"),
    ],
)
def test_a_wrong_job_is_refused_before_anything_starts(model, corpus, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run_job(job(model, corpus, tmp_path / "out", **change), quiet=True)


def launch(model, source, out, *extra):
    command = [
        sys.executable,
        "-m",
        "xlmr_ray",
        "run",
        "text-classification",
        "--model",
        str(model),
        "--input",
        str(source),
    ]
    command += [
        "--output",
        str(out),
        "--set",
        "cluster.shard_rows=2",
        "--set",
        "input.id=id",
        "--set",
        "input.keep=[lang,text]",
    ]
    return subprocess.Popen(
        [*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_commits(out, count, process, deadline=240):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        done = len(list(Path(out).glob("_runs/*/shards/*.json")))
        if done >= count:
            return done
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("no commits")


def test_sigkill_of_the_driver_and_a_second_launch(steps_here, model, corpus, tmp_path):
    clean = tmp_path / "clean"
    run_job(job(model, corpus, clean, rows=2), quiet=True)
    out = tmp_path / "out"
    process = launch(model, corpus, out)
    wait_for_commits(out, random.randint(1, 20), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {record.shard: record.attempt for record in committed_of(out)}
    outcome = run_job(job(model, corpus, out, rows=2), quiet=True)
    after = {record.shard: record.attempt for record in committed_of(out)}
    assert before.items() <= after.items()  # what was finished was not scored again
    assert outcome.figures.shards <= 40 - len(before)
    assert result(out).equals(result(clean))
    assert verify(open_store(str(out))).ok


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_being_stopped_says_how_to_go_on(model, corpus, tmp_path, stop):
    out = tmp_path / "out"
    process = launch(model, corpus, out)
    done = wait_for_commits(out, 1, process)
    os.kill(process.pid, stop)
    said, errors = process.communicate(timeout=60)
    last = errors.strip().splitlines()[-1]
    if process.returncode != 0:  # it may have been through already
        assert process.returncode == 130, errors
        counted = re.fullmatch(
            r"xlmr-ray: stopped: (\d+) of 40 shards of run \w+ are committed; the same command goes on from there", last
        )
        assert counted, last
        assert done <= int(counted[1]) <= wait_for_commits(out, 1, process)
    assert "Traceback" not in errors
    assert "*** SIGTERM" not in errors  # Ray's core would end the process 3 s later, whatever it does
    assert "ray.kill" not in said + errors
