"""`xlmr-ray run … --limit N`: the first N documents, as a run beside the whole one, which readers go on to see."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.days import write
from xlmr_ray import read_results
from xlmr_ray.batch.incremental import publish_found
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.manifest import finish
from xlmr_ray.batch.ledger.published import current, is_limited, publish
from xlmr_ray.batch.ledger.record import read_record
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.batch.plan import Dead
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.score import commit_dead
from xlmr_ray.batch.store.open import open_store


@pytest.fixture
def corpus(tmp_path):
    """Eleven documents in three files, of which the last is named before the others in no order."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": f"document {i}", "lang": "xx"} for i in range(11)]
    pq.write_table(pa.Table.from_pylist(rows[:4]), folder / "a.parquet", row_group_size=3)
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[4:8]))
    (folder / "c.csv").write_text("lang,text\n" + "".join(f"xx,{row['text']}\n" for row in rows[8:]))
    return folder


def published(out):
    rows = pa.concat_tables(pq.read_table(file) for file in result_files(str(out)))
    return rows.sort_by([("source", "ascending"), ("row", "ascending")]).drop_columns("score")


def test_the_first_documents_are_a_run_beside_the_whole_one(steps_here, call, model, corpus, tmp_path):
    out = tmp_path / "out"
    run = ["run", "text-classification", "--model", model, "--input", corpus, "--output", out]
    run += ["--set", "input.keep=[text]", "--set", "cluster.shard_rows=3"]
    code, _, err = call(*run, "--limit", 5)
    assert code == 0, err
    assert "5 documents of 2 files in 3 shards" in err
    first = published(out)
    assert first["text"].to_pylist() == [f"document {i}" for i in range(5)]

    code, _, err = call(*run)
    assert code == 0, err
    whole = published(out)
    assert whole.num_rows == 11
    assert whole.slice(0, 5).equals(first)
    code, told, _ = call(*run, "--set", "input.limit=5")  # the same run
    assert (code, "nothing left to do" in told) == (0, True)
    assert told.rstrip().endswith("not published: a run of the whole input is")
    assert published(out).equals(whole)
    assert call("verify", out)[0] == 0
    assert read_results(str(out)).count() == 11


def job(corpus, out, **more):
    content = {
        "input": {"path": str(corpus), **more},
        "tasks": ["text-classification"],
        "output": {"path": str(out)},
        "incremental": True,
    }
    return check_job(content, "job")


def test_of_an_incremental_job_the_first_of_what_is_new_and_its_table_stays(tmp_path):
    folder, store = tmp_path / "corpus", open_store(str(tmp_path / "out"))
    write(folder, "a.jsonl", ["a0", "a1", "a2"])

    def plan(**more):
        prepared = prepare_run(job(folder, tmp_path / "out", **more), store)
        shards = prepared.plan.shards
        return prepared, [(shard.input.key.rpartition("/")[2], shard.rows) for shard in shards]

    assert plan(limit=2)[1] == [("a.jsonl", 2)]
    day, shards = plan()
    assert shards == [("a.jsonl", 3)]
    finished(store, day)
    now = current(store)
    assert now.run_id == day.plan.run_id
    assert plan(limit=2)[0].plan.run_id == day.plan.run_id  # nothing is new
    write(folder, "b.jsonl", ["b0", "b1", "b2"])
    limited, shards = plan(limit=2)
    assert shards == [("b.jsonl", 2)]
    assert not finished(store, limited)
    assert current(store) == now
    assert plan()[1] == [("b.jsonl", 3)]  # nothing was added to the table


def finished(store, prepared, started=0.0):
    """Every shard committed as an error, and published as a run does it: whether that is what readers see."""
    plan = prepared.plan
    for shard in plan.shards:
        if read_record(store, plan.run_id, shard.id) is None:
            commit_dead(store, plan.run_id, Dead(shard.id, shard.input, "empty_file", ""))
    finish(store, plan.run_id, plan.ids())
    if prepared.found:
        return publish_found(store, prepared.found, started=started)[0]
    limited = is_limited(store, plan.run_id)
    return publish(store, plan.run_id, started=started, job=prepared.job, limited=limited)[1]


def test_who_is_published(tmp_path):
    folder, store = tmp_path / "corpus", open_store(str(tmp_path / "out"))
    write(folder, "a.jsonl", ["a0", "a1", "a2"])

    def launched(started, limit, *, incremental=False):
        one = job(folder, tmp_path / "out", limit=limit).model_copy(update={"incremental": incremental})
        return finished(store, prepare_run(one, store), started)

    assert launched(5.0, 2)
    assert launched(6.0, 1)
    assert not launched(4.0, 2)
    assert launched(3.0, None, incremental=True)  # launched before them, and of all
    assert not launched(7.0, 1)
    assert not launched(2.0, None)
    assert launched(4.0, None)
    assert not launched(8.0, 2)


def test_limits_that_are_none(call, model, corpus, tmp_path):
    run = ["run", "text-classification", "--model", model, "--input", corpus, "--output", tmp_path / "out"]
    assert call(*run, "--limit", "0")[0] == 2
    code, _, err = call(*run, "--set", "input.limit=0")
    assert (code, err.startswith("xlmr-ray: text-classification: input.limit: ")) == (2, True)
    assert not (tmp_path / "out").exists()
