"""What is estimated of the texts that come again in other shards, and that rows are the same, to the last bit, where
their results are kept.
"""

import json
import random

import pyarrow as pa
import pytest

from tests.batch.direct import run_directly
from tests.batch.stages.test_reuse import SEVERAL, rows, write
from tests.models import save_classifier
from xlmr_ray.batch import repeats
from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.repeats import Keeping, RepeatShare, keeping, looked_into
from xlmr_ray.batch.stages import encode
from xlmr_ray.batch.stages.shared_results import ResultHolder
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.engine.result_cache import ResultCache


class InProcess:
    """The actor's results, without an actor."""

    def __init__(self, most):
        self.results, self.asked, self.had = ResultHolder(most), 0, 0

    def find(self, keys):
        found = self.results.find(b"".join(keys))
        self.asked, self.had = self.asked + len(keys), self.had + sum(one is not None for one in found)
        return found

    def keep(self, results):
        self.results.keep(b"".join(results), list(results.values()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"))


def job(model, folder, output, tasks="text-classification", shard_rows=20, **cluster):
    content = {
        "model": str(model),
        "input": {"path": str(folder), "id": "id"},
        "tasks": tasks,
        "output": {"path": str(output)},
        "cluster": {"shard_rows": shard_rows, **cluster},
        "errors": {"max_fraction": 1.0},
    }
    return check_job(content, "test")


def spread(distinct, again, seed=0):
    """So many texts of which some come again, in any order."""
    texts = [f"Document number {n} of many." + " more" * (n % 7) for n in range(distinct)]
    texts += random.Random(seed).choices(texts, k=again)
    random.Random(seed).shuffle(texts)
    return texts


@pytest.mark.parametrize("tasks", ["text-classification", SEVERAL], ids=["one", "several"])
def test_rows_are_those_of_a_run_that_keeps_nothing(tmp_path, model, monkeypatch, tasks):
    folder = tmp_path / "in"
    texts = spread(63, 37)
    texts[5] = texts[70] = ""  # error rows
    write(folder, "a.jsonl", texts)
    write(folder, "b.jsonl", texts[:30])
    run_directly(job(model, folder, tmp_path / "without", tasks))
    shared = InProcess(1 << 24)
    real = encode.load_runners

    def with_shared(sources, settings):
        loaded = real(sources, settings)
        for one in loaded:
            one.runner.known = shared
        return loaded

    with monkeypatch.context() as patch:
        patch.setattr(encode, "load_runners", with_shared)
        run_directly(job(model, folder, tmp_path / "with", tasks))
    assert rows(tmp_path / "with").equals(rows(tmp_path / "without"))
    assert shared.had > 40

    def computed(output):
        store = open_store(str(tmp_path / output))
        assert verify(store).ok
        stats = [one.stats for one in committed(store, current(store).run_id)]
        return sum(one.tokens for one in stats), sum(one.tokens + one.repeated for one in stats)

    (less, whole), (more, same) = computed("with"), computed("without")
    assert less < 0.7 * more
    assert whole == same or tasks is SEVERAL  # whose sequences several tasks share, or not


def prepared(model, folder, output, **more):
    one = job(model, folder, output, **more)
    return one, prepare_run(one, open_store(str(output)))


THERE = Resources((2.0,), (), 8e9)


def kept(made):
    one, run = made
    return keeping(one, run.recipe, run.plan.shards, pa.array(range(len(run.plan.shards))).to_numpy(), THERE)


def test_what_is_estimated_of_a_small_run_is_so(tmp_path, model):
    folder = tmp_path / "in"
    texts = [f"text {n}" for n in range(40)]
    #          a shard of 20: 5 repeats of its own; then one with 8 of the shard before, twice each in part
    write(folder, "a.jsonl", texts[:15] + texts[:5] + texts[:8] + texts[:2] + texts[30:40])
    found = kept(prepared(model, folder, tmp_path / "out"))
    assert found.found == RepeatShare(40, own=7, again=8, whole=True)
    assert found.bytes == 500_000_000  # a sixteenth of memory
    assert found.memory > found.bytes
    assert str(found) == (
        "17.5% of 40 documents have the text of one before in their shard, 20.0% of one in a shard before; results are "
        "kept for these, in 477 MiB at most"
    )


def test_nothing_is_kept_where_it_does_not_pay(tmp_path, model):
    folder = tmp_path / "in"
    write(folder, "a.jsonl", spread(97, 3))
    found = kept(prepared(model, folder, tmp_path / "out"))
    assert (found.found.rows, found.bytes, found.memory) == (100, 0, 0)
    assert kept(prepared(model, folder, tmp_path / "asked", repeats_bytes=12345)).bytes == 12345
    assert kept(prepared(model, folder, tmp_path / "none", repeats_bytes=0)) == Keeping()
    assert kept(prepared(model, folder, tmp_path / "one", shard_rows=100)) == Keeping()


def test_a_bound_that_is_too_small_for_what_is_between_counts(tmp_path, model):
    folder = tmp_path / "in"
    texts = [f"text {n}" for n in range(100)]
    write(folder, "a.jsonl", texts + texts)
    assert kept(prepared(model, folder, tmp_path / "out", repeats_bytes=1 << 20)).found.again == 100
    assert kept(prepared(model, folder, tmp_path / "few", repeats_bytes=50 * 400)).found.again == 0


def test_a_sample_is_between_its_bounds(tmp_path, model, monkeypatch):
    folder = tmp_path / "in"
    write(folder, "a.jsonl", spread(1260, 740))
    monkeypatch.setattr(repeats, "SAMPLE_ROWS", 400)
    found = kept(prepared(model, folder, tmp_path / "out")).found
    assert not found.whole
    assert 300 <= found.rows <= 500
    assert found.least - 2 * found.error < 0.37 < found.most + 2 * found.error * found.window


def test_pairs_of_neighbours_from_all_over():
    chosen = looked_into(pa.array([8192] * 1000).to_numpy())
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert all(b == a + 1 for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    assert looked_into(pa.array([10] * 5).to_numpy()) == [0, 1, 2, 3, 4]
    assert looked_into(pa.array([100_000] * 2).to_numpy()) == [0, 1]


def test_what_cannot_be_read_is_left_to_the_run(tmp_path, model):
    folder = tmp_path / "in"
    write(folder, "a.jsonl", spread(30, 30))
    write(folder, "b.jsonl", spread(30, 30))
    made = prepared(model, folder, tmp_path / "out")
    (folder / "b.jsonl").write_text(json.dumps({"text": "changed"}))
    assert kept(made).found.rows == 60


def test_the_bound_is_kept_and_the_oldest_go_first():
    cache = ResultCache(10 * (384 + 16))
    for number in range(25):
        cache.keep(b"%d" % number, number, 16)
        assert cache.find(b"0") == 0  # asked for, so it stays
        assert cache.held <= cache.most
    assert sorted(cache.values) == sorted([b"0", *(b"%d" % n for n in range(16, 25))])
    cache.keep(b"large", 1, cache.most)
    assert cache.find(b"large") is None
