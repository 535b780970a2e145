"""The engine: transformers' numbers, in input order, the same to the last bit whatever else is in the batch, through
lack of memory.
"""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import bind_task

CLASSES = ("text-classification", {"function_to_apply": "none", "top_k": None})


@pytest.fixture(scope="module")
def engine(small):
    tasks = [bind_task(*_named(small, *CLASSES)), bind_task(*_named(small, "embedding", {"pooling": "mean"}))]
    return Engine.load(small, tasks, EngineSettings(device="cpu"))


def _named(folder, name, options):
    return name, folder, options


def documents(lengths, seed=0):
    generator = np.random.default_rng(seed)
    return pa.array([generator.integers(3, 300, n).tolist() for n in lengths], pa.list_(pa.int32()))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_results_are_transformers_in_input_order(engine, small, implementation):
    docs = documents([5, 128, 1, 40, 2, 64, 17, 5])
    got = Engine.load(small, engine.tasks, EngineSettings(device="cpu", attn_implementation=implementation)).run(docs)
    theirs = transformers.XLMRobertaForSequenceClassification.from_pretrained(small).eval()
    assert got.failed == {}
    for place, doc in enumerate(docs.to_pylist()):
        with torch.no_grad():
            out = theirs(torch.tensor([doc]), output_hidden_states=True)
        assert np.abs(got.raw[0][place] - out.logits[0].numpy()).max() < 1e-5
        assert np.abs(got.raw[1][place] - out.hidden_states[-1][0].mean(0).numpy()).max() < 1e-5


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 128), min_size=1, max_size=24),
    budgets=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    pooling=st.sampled_from(["cls", "mean", "max", "mean_sqrt_len"]),
    data=st.data(),
)
def test_a_documents_bits_do_not_depend_on_its_batch(engine, small, lengths, budgets, pooling, data):
    engine.tasks[1] = bind_task("embedding", small, {"pooling": pooling})
    docs = documents(lengths)
    order = data.draw(st.permutations(range(len(lengths))))
    engine.max_tokens = budgets[0]
    one = engine.run(docs).raw
    engine.max_tokens = budgets[1]
    other = engine.run(docs.take(pa.array(order))).raw
    alone = engine.run(docs.slice(order[0], 1)).raw
    for i in range(2):
        assert np.array_equal(one[i][order], other[i])
        assert np.array_equal(one[i][order[0]], alone[i][0])


def test_threads_do_not_change_bits(engine):
    docs = documents([3, 9, 11, 70, 128])
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(engine.run(docs).raw)
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_halves_the_budget_and_goes_on(small, error, monkeypatch):
    engine = Engine.load(small, [bind_task("embedding", small, {})], EngineSettings(device="cpu", max_tokens=1000))
    docs = documents([100] * 12 + [10] * 5)
    wanted = engine.run(docs).raw[0]
    real = Engine.compute

    def starved(self, batch, places):
        if batch.tokens > 300:
            raise error
        return real(self, batch, places)

    monkeypatch.setattr(Engine, "compute", starved)
    got = engine.run(docs)
    assert got.failed == {}
    assert np.array_equal(got.raw[0], wanted)
    assert engine.max_tokens <= 300
    kept = engine.max_tokens
    engine.run(docs)
    assert engine.max_tokens == kept


def test_a_document_that_does_not_fit_alone_is_named_and_the_rest_scored(small, monkeypatch):
    engine = Engine.load(small, [bind_task("embedding", small, {})], EngineSettings(device="cpu"))
    docs = documents([100, 20, 128, 30])
    wanted = engine.run(docs).raw[0]
    real = Engine.compute

    def starved(self, batch, places):
        if max(batch.lengths) > 110:
            raise torch.OutOfMemoryError("no memory")
        return real(self, batch, places)

    monkeypatch.setattr(Engine, "compute", starved)
    got = engine.run(docs)
    assert list(got.failed) == [2]
    assert got.failed[2][0] == "out_of_memory"
    assert np.array_equal(got.raw[0][[0, 1, 3]], wanted[[0, 1, 3]])


def test_another_error_is_not_taken_for_a_lack_of_memory(small, monkeypatch):
    engine = Engine.load(small, [bind_task("embedding", small, {})], EngineSettings(device="cpu"))
    monkeypatch.setattr(Engine, "compute", lambda self, batch, places: (_ for _ in ()).throw(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        engine.run(documents([5]))


def test_results_that_are_no_numbers_are_named(engine, small):
    weights = engine.model.embeddings.word_embeddings.weight
    kept = weights[7].clone()
    with torch.no_grad():
        weights[7] = float("nan")
    try:
        got = engine.run(pa.array([[0, 9, 2], [0, 7, 2], [0, 10, 2]], pa.list_(pa.int32())))
    finally:
        with torch.no_grad():
            weights[7] = kept
    assert {place: failure[0] for place, failure in got.failed.items()} == {1: "non_finite"}


def test_empty_and_too_long_sequences(engine):
    assert engine.run(pa.array([], pa.list_(pa.int32()))).raw[0].shape[0] == 0
    got = engine.run(pa.array([[], [0, 5, 2]], pa.list_(pa.int32())))
    assert got.failed[0][0] == "no_tokens"
    assert np.isfinite(got.raw[0][1]).all()
    with pytest.raises(UserError, match="129 tokens, the model has positions for 128"):
        engine.run(documents([129]))


def test_slices_and_chunks_of_arrow_are_read_as_they_are(engine):
    docs = documents([4, 8, 15, 16, 23])
    whole = engine.run(docs).raw[0]
    assert np.array_equal(engine.run(docs.slice(1, 3)).raw[0], whole[1:4])
    assert np.array_equal(engine.run(pa.chunked_array([docs.slice(0, 2), docs.slice(2)])).raw[0], whole)


def test_counters(engine):
    before = engine.stats.tokens, engine.stats.sequences
    engine.run(documents([4, 8]))
    assert (engine.stats.tokens - before[0], engine.stats.sequences - before[1]) == (12, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8' is none of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"attn_implementation": "flash_attention_9"}, "there are: eager, sdpa"),
    ],
)
def test_arguments_that_do_not_fit(small, arguments, message):
    with pytest.raises(UserError, match=message):
        Engine.load(small, [bind_task("embedding", small, {})], EngineSettings(**arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_gpu_that_is_not_there(small):
    with pytest.raises(UserError, match="no GPU"):
        Engine.load(small, [bind_task("embedding", small, {})], EngineSettings(device="cuda"))


def test_the_engine_does_not_need_ray():
    code = "import sys; sys.modules['ray'] = None; import xlmr_ray; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
