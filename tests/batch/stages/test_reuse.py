"""Rows of a replaced file whose texts are the same take their results from the table before: the rows are those that a
run without it gives, to the last bit, and only what is new is computed.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.direct import job_of, run_directly
from tests.models import save_classifier
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.merge import compact
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.results import result_files
from xlmr_ray.batch.ledger.sweep import sweep
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.observe.drift import read_drift
from xlmr_ray.batch.observe.report.gather import gather_report
from xlmr_ray.batch.stages.reuse import as_keys, hashes_of
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.errors import UserError

SEVERAL = [
    {"task": "text-classification", "name": "label", "top_k": 2},
    {"task": "embedding", "name": "vector", "precision": "float16", "long": "windows"},
    {"task": "feature-extraction", "name": "tokens"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


def write(folder, name, texts):
    """A file of rows with ids of their places, replaced if it is there."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)]
    (folder / "new").write_text("".join(lines))
    (folder / "new").replace(folder / name)


def night(model, folder, output, *, reuse=True, tasks="text-classification"):
    content = {
        "model": str(model),
        "input": {"path": str(folder), "id": "id"},
        "tasks": tasks,
        "output": {"path": str(output)},
        "cluster": {"shard_rows": 40},
        "errors": {"max_fraction": 1.0, "empty": "score"},
        "incremental": True,
        "reuse": reuse,
    }
    run_directly(check_job(content, "test"))
    store = open_store(str(output))
    assert verify(store).ok
    records = list(committed(store, current(store).run_id))
    return sum(one.stats.reused for one in records), sum(one.rows_in for one in records)


def rows(output):
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in sorted(result_files(str(output)))])
    return table.take(pa.compute.sort_indices(table, [("source", "ascending"), ("row", "ascending")]))


def texts_of(count, first=0):
    return [f"Document number {n} of many." if n % 9 else "" for n in range(first, first + count)]


@pytest.mark.parametrize("tasks", ["text-classification", SEVERAL], ids=["one", "several"])
def test_only_what_is_new_is_computed_and_the_rows_are_the_same(tmp_path, model, tasks):
    folder = tmp_path / "in"
    write(folder, "a.jsonl", texts_of(100))
    write(folder, "b.jsonl", texts_of(30, 500))
    assert night(model, folder, tmp_path / "out", tasks=tasks) == (0, 130)
    # One is new in front, some are changed, one is gone, and one is what another file has, which counts as new.
    changed = ["new", *texts_of(100)]
    changed[20], changed[21], changed[50] = "other", "another", "Document number 501 of many."
    del changed[70]
    write(folder, "a.jsonl", changed)
    assert night(model, folder, tmp_path / "out", tasks=tasks) == (96, 100)
    night(model, folder, tmp_path / "fresh", tasks=tasks, reuse=False)
    assert rows(tmp_path / "out").equals(rows(tmp_path / "fresh"))
    assert not (tmp_path / "fresh" / "hashes").exists()
    store = open_store(str(tmp_path / "out"))
    report = gather_report(store)
    assert (report.reused, report.rows, report.summary.rows) == (96, 100, 100)
    assert read_drift(store, current(store).run_id) is not None
    # The third night goes on from the second, whose rows were taken over.
    write(folder, "a.jsonl", [*changed, "last"])
    assert night(model, folder, tmp_path / "out", tasks=tasks) == (100, 101)
    night(model, folder, tmp_path / "again", tasks=tasks, reuse=False)
    assert rows(tmp_path / "out").equals(rows(tmp_path / "again"))


def test_merged_and_swept_in_between(tmp_path, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in "abc":
        write(folder, f"{name}.jsonl", texts_of(90, ord(name) * 1000))
    night(model, folder, out)
    store = open_store(str(out))
    assert compact(store).after == 1
    assert sweep(store, older_than=-1)
    write(folder, "b.jsonl", ["new", *texts_of(90, ord("b") * 1000)])
    assert night(model, folder, out) == (90, 91)
    night(model, folder, tmp_path / "fresh", reuse=False)
    assert rows(out).equals(rows(tmp_path / "fresh"))
    assert verify(store).ok
    assert sweep(store, older_than=-1, dry_run=True) is not None


def test_a_table_without_hashes_another_option_and_a_file_that_is_damaged(tmp_path, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    write(folder, "a.jsonl", texts_of(50))
    assert night(model, folder, out, reuse=False) == (0, 50)
    write(folder, "a.jsonl", [*texts_of(50), "new"])
    assert night(model, folder, out) == (0, 51)
    write(folder, "a.jsonl", [*texts_of(50), "new", "newer"])
    tasks = [{"task": "text-classification", "top_k": 2}]
    assert night(model, folder, out, tasks=tasks) == (0, 52)  # another job, from nothing
    assert night(model, folder, out) == (51, 52)
    store = open_store(str(out))
    (key, *_) = [entry.key for entry in store.list(f"hashes/{current(store).run_id}/")]
    whole = store.get(key)[0]
    store.put(key, whole[:-9] + b"PAR1")
    assert any(key in problem for problem in verify(store).problems)
    write(folder, "a.jsonl", [*texts_of(50), "new", "newest"])
    night(model, folder, out)
    night(model, folder, tmp_path / "fresh", reuse=False)
    assert rows(out).equals(rows(tmp_path / "fresh"))


def test_orphans_of_hashes_are_swept(tmp_path, model):
    folder, out = tmp_path / "in", tmp_path / "out"
    write(folder, "a.jsonl", texts_of(20))
    night(model, folder, out)
    store = open_store(str(out))
    (key,) = [entry.key for entry in store.list("hashes/")]
    orphan = f"{key[: -len('.parquet') - 16]}{'0' * 16}.parquet"
    store.put(orphan, b"x")
    assert verify(store).orphans == 1
    assert [entry.key for entry in sweep(store)] == [orphan]


def test_hashes_are_of_texts_and_which_they_are():
    def of(*pairs):
        first, second = zip(*pairs, strict=True)
        count = len(pairs)
        table = {"_row": pa.array(range(count), pa.int64()), "_code": [""] * count, "text": first, "text_pair": second}
        return as_keys(hashes_of(pa.table(table), ["text", "text_pair"])["hash"]).tolist()

    pairs = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "b"), ("b", "a"), ("1:a", "b"), ("a1:b", "")]
    found = of(*pairs)
    assert len(set(found)) == 6
    assert found[0] == found[3]


def test_reuse_wants_a_table(tmp_path, model):
    job = job_of(model, tmp_path, tmp_path / "out").model_dump(exclude_defaults=True)
    with pytest.raises(UserError, match="reuse: takes results from the table before, which only incremental"):
        check_job({**job, "reuse": True}, "test")
