"""Equal inputs are computed once, and every row of them gets what it gets without that, to the last bit."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.protocols.test_equality import CASES, M3_CASES
from tests.serve.server import HEADS, save_causal
from tests.tasks.m3 import save_m3
from xlmr_ray import UserError, pipeline
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.repeats import Repeats
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.registry import TASKS, bind_task

INPUTS = {task: (inputs, options) for task, (_, inputs, options) in CASES.items()} | M3_CASES


def each_computed(ids, splits, targets=None):
    return Repeats(np.arange(len(splits) - 1))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A checkpoint a task."""
    causal, m3 = save_causal(tmp_path_factory.mktemp("causal")), save_m3(tmp_path_factory.mktemp("m3"))
    named = {"mini": "embedded:mini", "causal": str(causal)}
    return {task: named.get(model, HEADS + model) for task, (model, _, _) in CASES.items()} | dict.fromkeys(
        M3_CASES, str(m3)
    )


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_those_of_each_by_itself(places, task, monkeypatch):
    inputs, options = INPUTS[task]
    one = pipeline(task, places[task], **options)
    order = [0, 1, 0, 1, 1]
    before = one.engine.stats.sequences
    one.table([inputs[at] for at in dict.fromkeys(order)])
    distinct = one.engine.stats.sequences - before
    given = [inputs[at] for at in order]
    repeated = one.engine.stats.repeated  # documents may share a sequence
    once = one.table(given)
    assert one.engine.stats.sequences - before == 2 * distinct
    assert one.engine.stats.repeated > 1.5 * repeated
    module = "generator" if task == "text-generation" else "engine"
    monkeypatch.setattr(f"xlmr_ray.engine.{module}.Repeats.of", each_computed)
    assert once.equals(one.table(given))
    assert one.engine.stats.sequences - before >= 4 * distinct


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.lists(st.lists(st.integers(3, 6), min_size=0, max_size=3), max_size=40),
    with_targets=st.booleans(),
    data=st.data(),
)
def test_first_of_equal_ones(documents, with_targets, data):
    targets = [[data.draw(st.sampled_from([-100, 0])) for _ in ids] for ids in documents] if with_targets else None
    flat = np.array([i for ids in documents for i in ids], np.int32)
    marks = None if targets is None else np.array([i for one in targets for i in one], np.int32)
    splits = np.concatenate([[0], np.cumsum([len(ids) for ids in documents])]).astype(np.int64)
    keys = list(zip(documents, targets or documents, strict=True))
    found = Repeats.of(flat, splits, marks)
    assert found.first.tolist() == [keys.index(key) for key in keys]
    assert found.again.tolist() == [i for i, key in enumerate(keys) if keys.index(key) < i]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.lists(st.integers(0, 7), min_size=1, max_size=40),
    budget=st.integers(1, 2000),
    unit=st.sampled_from(["sequence", "token"]),
)
def test_any_repeats_in_any_batches(engines, which, budget, unit):
    engine, generator = engines[unit], np.random.default_rng(1)
    distinct = [generator.integers(3, 300, n).tolist() for n in (1, 3, 3, 20, 64, 64, 7, 2)]
    ids = pa.array([distinct[at] for at in which], pa.list_(pa.int32()))
    engine.max_tokens = budget
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xlmr_ray.engine.engine.Repeats.of", each_computed)
        each = engine.run(ids)
    engine.max_tokens = 1024
    before = engine.stats.sequences
    assert np.array_equal(engine.run(ids).raw[0], each.raw[0])
    assert engine.stats.sequences - before == len(set(which))


@pytest.fixture(scope="module")
def engines(small):
    tasks = {"sequence": bind_task("embedding", small, {}), "token": bind_task("feature-extraction", small, {})}
    return {unit: Engine.load(small, [task], EngineSettings(device="cpu")) for unit, task in tasks.items()}


def test_what_fails_fails_for_its_equals(engines, monkeypatch):
    real = Embedding.forward

    def poisoned(self, head, hidden, batch):
        out = real(self, head, hidden, batch)
        out[[i for i, length in enumerate(batch.lengths) if length == 3]] = float("nan")
        return out

    monkeypatch.setattr(Embedding, "forward", poisoned)
    ids = [[5, 6, 7], [5, 6], [5, 6, 7], [], [5, 6, 8], [], [5, 999], [5, 6], [5, 999]]
    found = engines["sequence"].run(pa.array(ids, pa.list_(pa.int32())))
    assert sorted(found.failed) == [0, 2, 3, 4, 5, 6, 8]
    assert found.failed[0] == found.failed[2]
    assert found.failed[6] == found.failed[8] != found.failed[3]


def test_a_text_of_pipeline_fails_as_the_first_of_its_equals(monkeypatch):
    real = Embedding.forward
    monkeypatch.setattr(Embedding, "forward", lambda *given: real(*given) * float("nan"))
    with pytest.raises(UserError, match="text 0: non_finite"):
        pipeline("embedding")(["a", "a"])
