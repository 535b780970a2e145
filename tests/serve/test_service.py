"""The service's answers are those of `pipeline()`, alone and among others; what it refuses, and how."""

import asyncio
import threading
import time
from typing import Any

import pyarrow as pa
import pytest

from tests.serve.texts import CASES, TEXTS
from xlmr_ray import pipeline
from xlmr_ray.engine.pipeline import columns as as_columns
from xlmr_ray.errors import UserError
from xlmr_ray.serve import bound_tasks
from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.requests import (
    CURRENT,
    BackendFailed,
    Context,
    Empty,
    Invalid,
    NotFound,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
)
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import TaskRequest


def ask(service: Service, task: str, columns: dict[str, list[Any]], options: Any = None, **more: Any) -> Answer:
    return asyncio.run(service.answer(TaskRequest(task, columns, options or {}, **more)))


@pytest.mark.parametrize("task", CASES)
def test_alone_as_pipeline(service, task):
    model, columns, options = CASES[task]
    answer = ask(service, task, columns, options, model=model)
    pipe = pipeline(task, service.models[model].source, **options)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    wanted = pipe.scored(pipe.task, as_columns(rows, pipe.task.roles))
    # One thread of torch and batches of other sizes: the same to the last bit.
    assert answer.table.equals(wanted)
    assert answer.table.schema == pipe.task.schema
    assert len(answer.answers) == len(rows)
    assert answer.tokens > 0


@pytest.mark.parametrize("task", CASES)
def test_a_task_tells_how_many_numbers_its_result_has(service, task):
    """The limits on results are kept before anything is computed."""
    model, columns, options = CASES[task]
    pipe = pipeline(task, service.models[model].source, **options)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    encoded = pipe.task.prepare(as_columns(rows, pipe.task.roles), pipe.tokenizer)
    (results,) = pipe.engine.results([encoded])
    assert pipe.task.results(encoded) == results.raw.size


def test_generation_and_perplexity_as_pipeline(service):
    for task, options in (("text-generation", {"max_new_tokens": 4, "seed": 3}), ("perplexity", {})):
        answer = ask(service, task, {"text": TEXTS[:3]}, options)
        assert answer.table.equals(pipeline(task, service.models["causal"].source, **options).table(TEXTS[:3]))


def test_among_64_others_to_the_last_bit(service):
    """Requests of all tasks, with options of their own, share batches."""
    alone = {
        task: ask(service, task, columns, options, model=model) for task, (model, columns, options) in CASES.items()
    }

    async def together() -> list[tuple[str, Answer]]:
        names = [task for _ in range(7) for task in CASES][:64]
        others = [
            service.answer(TaskRequest("text-classification", {"text": [text]}, {"top_k": k + 1}))
            for k, text in enumerate(TEXTS)
        ]
        asked = [
            service.answer(TaskRequest(task, CASES[task][1], CASES[task][2], model=CASES[task][0])) for task in names
        ]
        answers = await asyncio.gather(*asked, *others)
        return list(zip(names, answers, strict=False))

    batches = service.resident.queues[0].engine.stats.batches
    answers = asyncio.run(together())
    for task, answer in answers:
        assert answer.table.equals(alone[task].table), task
    tokens = sum(answer.tokens for _, answer in answers)
    assert service.resident.queues[0].engine.stats.batches - batches > tokens / 512  # they were split, too
    requests = service.metrics.registry.get_sample_value
    queue = service.resident.queues[0].name
    shared = requests("xlmr_ray_serve_batch_requests_sum", {"engine": queue})
    assert shared > requests("xlmr_ray_serve_batch_requests_count", {"engine": queue})  # and shared


def test_one_engine_for_all_heads_on_one_encoder(service):
    engines = {one.queue for one in service.resident.served if one.model.name != "causal"}
    assert len(engines) == 1
    assert next(iter(service.models)) == "mini"


def test_find(service):
    assert service.find("ner").task == "token-classification"
    assert service.find("text-classification").model.name == "mini"  # the first of several
    assert service.find("text-classification", "script").model.name == "script"
    with pytest.raises(NotFound, match="no model 'nope'; there are: mini, "):
        service.find("embedding", "nope")
    with pytest.raises(NotFound, match="no task 'nope'; here are: embedding"):
        service.find("nope")
    with pytest.raises(NotFound, match="task embedding is not one of model 'masked', which has: fill-mask"):
        service.find("embedding", "masked")


@pytest.mark.parametrize(
    ("task", "columns", "options", "error", "field"),
    [
        ("embedding", {"text": []}, {}, Empty, "text"),
        ("embedding", {"text": ["a", ""]}, {}, Empty, "text.1"),
        ("embedding", {"text": ["a"] * 5000}, {}, TooLarge, None),
        ("embedding", {"text": ["a", 3]}, {}, Invalid, "text.1"),
        ("embedding", {"text": ["a", "b\ud800"]}, {}, Invalid, "text.1"),
        ("embedding", {"text": ["a"]}, {"dimension": 3}, Invalid, "dimension"),
        ("embedding", {"text": ["a"]}, {"dimensions": 4000}, Invalid, "dimensions"),
        ("embedding", {"text": ["a"]}, {"pooling": ["mean"]}, Invalid, "pooling"),
        ("embedding", {"text": ["a"], "other": ["b"]}, {}, Invalid, "other"),
        ("rerank", {"text": ["a"]}, {}, Invalid, "text_pair"),
        ("rerank", {"text": ["a"], "text_pair": []}, {}, Invalid, "text_pair"),
        ("fill-mask", {"text": ["a <mask>", "b"]}, {}, Invalid, "text.1"),
        ("fill-mask", {"text": ["a <mask>"]}, {"top_k": 0}, Invalid, "top_k"),
        ("fill-mask", {"text": ["<mask>" * 500] * 40}, {"top_k": 1000}, TooLarge, "text"),
        ("fill-mask", {"text": ["a <mask>"]}, {"top_k": 1001}, Invalid, "top_k"),
        ("embedding", {"text": ["a"]}, {"ranges": "s3://bucket/ranges.json"}, Invalid, "ranges"),
        ("feature-extraction", {"text": ["a"]}, {"layers": [0] * 65}, Invalid, "layers"),
        ("question-answering", {"question": ["a"], "context": ["a"]}, {"top_k": 1001}, Invalid, "top_k"),
        ("multiple-choice", {"text": ["a"], "choices": [[]]}, {}, Empty, "choices.0"),
        ("multiple-choice", {"text": ["a"], "choices": ["b"]}, {}, Invalid, "choices.0"),
        ("multiple-choice", {"text": ["a"], "choices": [["b"] * 5000]}, {}, TooLarge, None),
        ("zero-shot-classification", {"text": ["a"]}, {}, Invalid, None),
        ("zero-shot-classification", {"text": ["a"]}, {"candidate_labels": ["b"] * 5000}, TooLarge, "candidate_labels"),
        ("zero-shot-classification", {"text": ["a"] * 30}, {"candidate_labels": ["b"] * 500}, TooLarge, None),
        ("token-classification", {"text": ["a"]}, {"stride": 400}, Invalid, "stride"),
        ("text-generation", {"text": ["a"]}, {"max_new_tokens": 100_000}, Invalid, "max_new_tokens"),
        ("text-generation", {"text": ["a"]}, {"num_beams": 9}, Invalid, "num_beams"),
        ("text-generation", {"text": ["a"]}, {"stop_sequence": ["b"] * 17}, Invalid, "stop_sequence"),
        ("pseudo-perplexity", {"text": ["a"]}, {"passes": 513}, Invalid, "passes"),
        ("pseudo-perplexity", {"text": ["word " * 100_000]}, {"long": "windows", "passes": "all"}, TooLarge, None),
        ("pseudo-perplexity", {"text": ["word " * 500] * 3}, {"passes": "all"}, TooLarge, None),
    ],
)
def test_refused_and_named(service, task, columns, options, error, field):
    with pytest.raises(error) as raised:
        ask(service, task, columns, options)
    assert raised.value.field == field
    assert "ServiceError" not in str(raised.value)
    # Whatever was refused, the next one is answered.
    assert ask(service, "embedding", {"text": ["a"]}).tokens


def test_fields_by_the_protocols_names(service):
    with pytest.raises(Empty) as raised:
        ask(service, "embedding", {"text": [""]}, fields={"text": "inputs"})
    assert str(raised.value) == "inputs.0: the text is empty"


def test_empty_texts_may_be_scored(service):
    limits = service.limits.model_copy(update={"empty": "score"})
    old, service.settings = service.settings, service.settings.model_copy(update={"limits": limits})
    try:
        assert ask(service, "embedding", {"text": [""]}).tokens == 2
    finally:
        service.settings = old


def test_a_late_request_is_answered_and_not_computed(service):
    before = service.resident.queues[0].engine.stats.sequences
    with pytest.raises(TimedOut):
        asyncio.run(service.answer(TaskRequest("embedding", {"text": ["late"]}), deadline=time.monotonic() - 1))
    ask(service, "embedding", {"text": ["next"]})
    assert service.resident.queues[0].engine.stats.sequences == before + 1


def test_too_many_tokens_wait(service, monkeypatch):
    limits = service.limits.model_copy(update={"queue_tokens": 600})
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"limits": limits}))
    tokenized, plain = [], service.prepare

    def prepare(*arguments):
        tokenized.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(service, "prepare", prepare)

    async def flood() -> list[Any]:
        asked = [service.answer(TaskRequest("embedding", {"text": ["many words " * 200]})) for _ in range(40)]
        return await asyncio.gather(*asked, return_exceptions=True)

    results = asyncio.run(flood())
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert refused
    assert all(error.retry_after >= 1 and error.headers["retry-after"] == str(error.retry_after) for error in refused)
    assert len(refused) < 40  # and those that were taken are answered
    assert len(tokenized) < 10  # most were refused at once
    assert all(isinstance(result, Answer | Overloaded) for result in results)
    assert ask(service, "embedding", {"text": ["after"]}).tokens


def test_what_nobody_waits_for_keeps_no_thread_and_refuses_nobody(service, monkeypatch):
    """Texts of a batch are tokenized, many of them, while a request comes for which there would be no room."""
    real, began, go_on = service.prepare, threading.Event(), threading.Event()

    def prepare(served, request):
        if len(request.columns["text"]) > 1:
            began.set()
            assert go_on.wait(20)
        return real(served, request)

    monkeypatch.setattr(service, "prepare", prepare)
    settings = service.settings.model_copy(
        update={"limits": service.limits.model_copy(update={"queue_tokens": 50, "request_s": 5.0})}
    )
    monkeypatch.setattr(service, "settings", settings)

    async def behind() -> list[Answer]:
        CURRENT.set(Context("", None, background=True))
        requests = [TaskRequest("embedding", {"text": ["many words " * 60] * 2})] * (service.tokenizers + 1)
        return await asyncio.gather(*map(service.answer, requests))

    async def both() -> tuple[Answer, list[Answer]]:
        later = asyncio.create_task(behind())
        try:
            await asyncio.to_thread(began.wait)
            first = await asyncio.wait_for(service.answer(TaskRequest("embedding", {"text": ["now"]})), 10)
        finally:
            go_on.set()
        return first, await later

    first, later = asyncio.run(both())
    assert first.answers
    assert all(len(one.answers) == 2 for one in later)


def test_failures_of_the_model_are_one_requests_own(service, monkeypatch):
    """A sequence that the model fails on does not take its batch with it."""
    from xlmr_ray.serve.queue import batcher

    real = batcher.compute_together

    def fails_on_long_ones(engine, parts):
        if any(len(part.ids) > 40 for part in parts):
            raise ValueError("the text is: secret")
        return real(engine, parts)

    monkeypatch.setattr(batcher, "compute_together", fails_on_long_ones)

    async def both() -> list[Any]:
        texts = ["short"] * 6 + ["long " * 60]
        asked = [service.answer(TaskRequest("embedding", {"text": [text]})) for text in texts]
        return await asyncio.gather(*asked, return_exceptions=True)

    *fine, bad = asyncio.run(both())
    assert all(isinstance(one, Answer) for one in fine)
    assert isinstance(bad, BackendFailed)
    assert "secret" not in str(bad)
    assert service.trouble() is None


def test_options_that_are_kept_are_few_and_short(service, monkeypatch):
    monkeypatch.setattr(bound_tasks, "KEPT_CHARACTERS", 10_000)
    kept, served = service.bound, service.find("zero-shot-classification")
    kept.clear()
    short = [{"candidate_labels": [f"label {number}", "b"]} for number in range(300)]
    tasks = [kept.find(served, options) for options in short]
    assert len(kept.kept) < 300
    assert kept.find(served, short[-1]) is tasks[-1]
    assert kept.find(served, short[0]) is not tasks[0]
    for number in range(100):
        kept.find(served, {"candidate_labels": [f"{number} " + "long " * 1000]})
        assert sum(len(said) for _, said in kept.kept) == kept.characters <= 10_000
    assert not kept.find(served, {"candidate_labels": ["a" * 20_000]}).labels[0].strip("a")
    assert not kept.kept
    assert kept.characters == 0


def test_models_are_replaced_without_a_refusal():
    first = ServeSettings.model_validate({"models": ["embedded:mini"], "engine": {"threads": 1}})
    second = ServeSettings.model_validate(
        {"models": [{"model": "embedded:mini", "name": "next"}], "engine": {"threads": 1}}
    )
    made = Service.load(first)

    async def through() -> list[Answer]:
        answers: list[Answer] = []
        swap = asyncio.create_task(asyncio.to_thread(made.replace_models, second))
        while not swap.done():
            answers += await asyncio.gather(
                *(made.answer(TaskRequest("text-classification", {"text": [t]})) for t in TEXTS)
            )
        await swap
        return [*answers, await made.answer(TaskRequest("text-classification", {"text": TEXTS[:1]}, model="next"))]

    old = made.resident.queues[0]
    answers = asyncio.run(through())
    assert len(answers) > 12
    old.thread.join(10)
    assert not old.thread.is_alive()
    with pytest.raises(NotFound):
        ask(made, "text-classification", {"text": ["a"]}, model="mini")
    # A checkpoint that is none leaves those there are.
    with pytest.raises(UserError, match="no such embedded checkpoint"):
        made.replace_models(ServeSettings.model_validate({"models": ["embedded:nope"]}))
    assert ask(made, "text-classification", {"text": ["a"]}).tokens
    made.close()
    made.resident.queues[0].thread.join(10)
    with pytest.raises(Unavailable):
        ask(made, "fill-mask", {"text": ["a"]})


def test_a_request_that_has_begun_keeps_its_model(monkeypatch):
    """Other models take the place of its model while its texts are tokenized, before it waits for the engine.
    They warm up with the other tokenizer.
    """
    settings = ServeSettings.model_validate({"models": ["embedded:mini"], "engine": {"threads": 1, "tokenizers": 2}})
    made = Service.load(settings)
    old = made.resident.queues[0]
    plain = Service.prepare

    def prepare(*arguments):
        monkeypatch.setattr(Service, "prepare", plain)
        made.replace_models(settings)
        old.thread.join(0.5)
        return plain(*arguments)

    monkeypatch.setattr(Service, "prepare", prepare)
    request = TaskRequest("text-classification", {"text": ["a"]})
    answer = asyncio.run(made.answer(request, deadline=time.monotonic() + 60))
    assert answer.tokens
    assert made.resident.queues[0] is not old
    old.thread.join(10)
    assert not old.thread.is_alive()
    made.close()


def test_the_table_is_the_batch_jobs(service):
    answer = ask(service, "text-classification", {"text": TEXTS}, model="script")
    assert answer.table.schema.names == ["label", "score", "tokens", "truncated"]
    assert isinstance(answer.table, pa.Table)
