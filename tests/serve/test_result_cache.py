"""Results that are kept for inputs that come again: the answers are those of a service that keeps none, to the last
bit, and what is known is not computed.
"""

import asyncio

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from tests.serve.protocols.test_equality import CASES, M3_CASES
from tests.serve.server import MODELS, save_causal
from tests.serve.test_service import ask
from tests.tasks.m3 import save_m3
from xlmr_ray import UserError, pipeline
from xlmr_ray.engine.pipeline import columns as as_columns
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.queue import batcher
from xlmr_ray.serve.requests import BackendFailed
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

INPUTS = CASES | {task: ("m3", *case) for task, case in M3_CASES.items()}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    causal, m3 = save_causal(tmp_path_factory.mktemp("causal") / "m"), save_m3(tmp_path_factory.mktemp("m3"))
    more = [
        {"model": str(causal), "name": "causal", "tasks": ["text-generation", "perplexity"]},
        {"model": str(m3), "name": "m3", "tasks": list(M3_CASES)},
        {"model": "embedded:mini", "name": "again", "tasks": ["embedding"]},  # the same weights by another name
    ]
    engine = {"threads": 1, "tokenizers": 1, "max_tokens": 512, "cache_bytes": 100_000_000}
    made = Service.load(ServeSettings.model_validate({"models": [*MODELS, *more], "engine": engine}))
    yield made
    made.close()


def documents(task):
    """Columns of two documents, and the same from a list of rows."""
    _, inputs, _ = INPUTS[task]
    rows = [{"text": one} if isinstance(one, str) else one for one in inputs[:2]]
    return rows, {name: [row[name] for row in rows] for name in rows[0]}


def computed(service, task, model):
    """Sequences that its engine has computed so far."""
    queue = service.find(task, model).queue
    return (queue.engine if hasattr(queue, "engine") else queue.generator).stats.sequences


@pytest.mark.parametrize("task", INPUTS)
def test_known_results_are_those_that_were_computed(service, task):
    model, _, options = INPUTS[task]
    rows, columns = documents(task)
    start = computed(service, task, model)
    cold = ask(service, task, columns, options, model=model)
    once = computed(service, task, model)
    assert cold.known == 0
    assert once > start
    warm = ask(service, task, columns, options, model=model)
    assert computed(service, task, model) == once
    assert warm.known == once - start
    pipe = pipeline(task, service.models[model].source, **options)
    wanted = pipe.scored(pipe.task, as_columns(rows, pipe.task.roles))
    assert cold.table.equals(wanted)
    assert warm.table.equals(wanted)
    assert cold.tokens == warm.tokens  # as a client reads it
    # In another order, twice each, and with one that is new.
    mixed = {name: [column[at] for at in (1, 0, 1, 0)] for name, column in columns.items()}
    again = ask(service, task, mixed, options, model=model)
    assert computed(service, task, model) == once
    assert again.table.equals(wanted.take(pa.array([1, 0, 1, 0])))
    assert again.repeated >= warm.known


@pytest.mark.parametrize("task", INPUTS)
def test_repeats_of_a_request_are_computed_once_without_a_cache(service, task):
    model, _, options = INPUTS[task]
    _, columns = documents(task)
    queue = service.find(task, model).queue
    kept, queue.cache = queue.cache, None
    try:
        start = computed(service, task, model)
        two = ask(service, task, columns, options, model=model)
        once = computed(service, task, model)
        twice = ask(service, task, {name: 2 * column for name, column in columns.items()}, options, model=model)
        assert computed(service, task, model) - once == once - start
    finally:
        queue.cache = kept
    assert twice.repeated == two.repeated * 2 + once - start
    assert twice.table.equals(pa.concat_tables([two.table, two.table]))


def test_options_and_models_share_nothing(service):
    text = {"text": ["Nobody has asked for this yet."]}
    first = ask(service, "embedding", text, model="mini")
    assert ask(service, "embedding", text, model="mini").known == 1
    other = ask(service, "embedding", text, {"normalize": False, "pooling": "cls"}, model="mini")
    assert other.known == 0
    assert not other.table.equals(first.table)
    assert ask(service, "embedding", text, {"pooling": "cls", "normalize": False}, model="mini").known == 1
    assert ask(service, "embedding", text, model="again").known == 0
    pair = {**text, "text_pair": ["Nor this."]}
    assert ask(service, "sentence-similarity", pair, model="mini").known == 0


def test_concurrent_requests_compute_a_text_once(service):
    texts = [f"This is asked for by {n} at once." for n in (3, 4, 5)]
    before = computed(service, "embedding", "mini")

    async def go():
        from xlmr_ray.serve.task_request import TaskRequest

        return await asyncio.gather(
            *(service.answer(TaskRequest("embedding", {"text": list(order)})) for order in (texts, texts[::-1]) * 8)
        )

    answers = asyncio.run(go())
    assert computed(service, "embedding", "mini") - before == 3
    assert sum(one.known for one in answers) == 15 * 3
    assert {str(one.table.take(pa.array([0])).to_pylist()) for one in answers[::2]} == {
        str(answers[1].table.take(pa.array([2])).to_pylist())
    }


def test_what_fails_is_not_kept(service, monkeypatch):
    text = {"text": ["This fails at first."]}
    real = batcher.compute_together
    with monkeypatch.context() as broken:
        broken.setattr(batcher, "compute_together", lambda *given: [np.full_like(one, np.nan) for one in real(*given)])
        with pytest.raises(BackendFailed):
            ask(service, "embedding", text, model="mini")
    assert ask(service, "embedding", text, model="mini").known == 0
    assert ask(service, "embedding", text, model="mini").known == 1


@pytest.mark.parametrize("most", [1, 2_000])
def test_whatever_the_bound_the_answers_are_the_same(service, most):
    queue = service.find("embedding", "mini").queue
    kept, texts = queue.cache, {"text": [f"Number {n % 7}" for n in range(40)] + ["long " * 90]}
    wanted = ask(service, "embedding", texts, model="mini").table
    queue.cache = type(kept)(most)
    try:
        for _ in range(3):
            assert ask(service, "embedding", texts, model="mini").table.equals(wanted)
            assert queue.cache.held <= most
    finally:
        queue.cache = kept


def test_routes_and_metrics(service):
    client = TestClient(build_app(service, service.settings))

    def counted(name):
        return service.metrics.registry.get_sample_value(
            f"xlmr_ray_serve_{name}_sequences_total", {"task": "embedding", "model": "mini"}
        )

    texts = ["By the routes of three protocols.", "By the routes of three protocols.", "And another."]
    one = client.post("/embed", json={"inputs": texts}).content
    known, repeated = counted("known"), counted("repeated")
    assert client.post("/embed", json={"inputs": texts}).content == one
    assert (counted("known") - known, counted("repeated") - repeated) == (2, 1)
    first = client.post("/v1/embeddings", json={"model": "mini", "input": texts}).json()
    computed_before = computed(service, "embedding", "mini")
    again = client.post("/v1/embeddings", json={"model": "mini", "input": texts[::2]}).json()
    assert computed(service, "embedding", "mini") == computed_before
    assert [row["embedding"] for row in again["data"]] == [row["embedding"] for row in first["data"][::2]]
    page = client.get("/metrics").text
    values = dict(line.split() for line in page.splitlines() if line.startswith("xlmr_ray_serve_cache_"))
    cache = service.resident.cache
    assert float(values["xlmr_ray_serve_cache_bytes"]) == cache.held <= cache.most
    assert float(values["xlmr_ray_serve_cache_results"]) == len(cache.values) > 0


def test_off_by_default_and_checked():
    settings = {"models": ["embedded:mini"]}
    assert ServeSettings.model_validate(settings).engine.cache_bytes == 0
    from xlmr_ray.validation import checked

    with pytest.raises(UserError, match=r"engine\.cache_bytes: input should be greater than or equal to 0"):
        checked(ServeSettings, settings | {"engine": {"cache_bytes": -1}}, "file")
