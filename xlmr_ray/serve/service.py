"""Texts in, the answers of a task out: tokenized and checked at once, then queued for the engine.

Without HTTP and without Ray: the protocols are thin over it, and a program may hold one itself.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from xlmr_ray.errors import UserError
from xlmr_ray.serve.answer import Answer
from xlmr_ray.serve.batches.shelf import shelf_of
from xlmr_ray.serve.bound_tasks import BoundTasks
from xlmr_ray.serve.limits import check_columns, check_encoded, check_options, check_overlap, check_whole
from xlmr_ray.serve.metrics import (
    CACHE_BYTES,
    CACHE_RESULTS,
    HEALTHY,
    IN_FLIGHT,
    MODEL,
    QUEUE_REQUESTS,
    QUEUE_TOKENS,
    READY,
    Metrics,
)
from xlmr_ray.serve.models import Model, Models, Served, load_models
from xlmr_ray.serve.queue.admission import Tokenizing, admit, check_tokens
from xlmr_ray.serve.requests import CURRENT, Invalid, NotFound, Unavailable
from xlmr_ray.serve.settings import MOST_TOKENIZERS, LimitsSection, ServeSettings
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.serve.tracing import span
from xlmr_ray.tasks.registry import TASKS, canonical_task
from xlmr_ray.tasks.task import Task
from xlmr_ray.tasks.unfit import UnfitRows
from xlmr_ray.tokenizer.tokenizer import TokenizerError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Service:
    """The resident models and what they answer. `Service.load` makes one that is warm; `answer` may be awaited from any
    event loop.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.resident: Models | None = None
        self.ready = False
        self.closing = False
        self.in_flight = 0  # HTTP requests
        self.failure: str | None = None  # why the models that were asked for last are not those that are resident
        self._replacing = threading.Lock()
        self.bound = BoundTasks()
        self.shelf = shelf_of(settings)
        self.batches_changed: Callable[[], None] = lambda: None  # wakes who computes them
        wanted = settings.engine.tokenizers
        self.tokenizers = min(MOST_TOKENIZERS, os.cpu_count() or 1) if wanted == "auto" else wanted
        self.tokenizing = Tokenizing()
        self.pool = ThreadPoolExecutor(self.tokenizers, thread_name_prefix="tokenize")
        self.behind = ThreadPoolExecutor(1, thread_name_prefix="tokenize-behind")  # of requests for which nobody waits
        self.reading = ThreadPoolExecutor(1, thread_name_prefix="read-body")  # large ones
        self.apart = ThreadPoolExecutor(1, thread_name_prefix="list-tokens")  # what needs no engine, and may take long

    @classmethod
    def load(cls, settings: ServeSettings, metrics: Metrics | None = None) -> "Service":
        """The models in memory and warm. Raises UserError, one line, for settings that do not fit."""
        service = cls(settings, metrics)
        service.replace_models(settings)
        return service

    @property
    def limits(self) -> LimitsSection:
        return self.settings.limits

    @property
    def models(self) -> Mapping[str, Model]:
        """By name, in the order of the settings."""
        return {} if self.resident is None else self.resident.models

    def replace_models(self, settings: ServeSettings) -> None:
        """Loads the models of the settings beside those that are there, warms them up, and only then puts them in their
        place: no request is refused meanwhile, and those that wait are computed by the model that they came for.
        Both are in memory for that time. Blocks; raises what loading raises, with the old ones in place.
        """
        with self._replacing:
            self._replace_models(settings)

    def _replace_models(self, settings: ServeSettings) -> None:
        new = load_models(settings, self.metrics.batch)
        try:
            with ThreadPoolExecutor(1) as apart:  # the caller may be in an event loop
                apart.submit(asyncio.run, self._warm_up(new)).result()
        except BaseException:
            new.close()
            raise
        old, self.resident, self.settings, self.failure = self.resident, new, settings, None
        self.bound.clear()
        self.ready = True
        if old is not None:
            old.close()

    def find(self, task: str, model: str | None = None) -> Served:
        """The task of the model, of the first one that has it where none is named. Raises NotFound, which says what
        there is.
        """
        resident = self.resident
        if resident is None:
            raise Unavailable("the models are being loaded")
        name, wanted = canonical_task(task), None if model is None else self.model(model)
        of_it = [one for one in resident.served if wanted in (None, one.model)]
        for one in of_it:
            if one.task == name:
                return one
        there = dict.fromkeys(one.task for one in of_it)
        if name not in TASKS:
            raise NotFound(f"no task {task!r}; here are: {', '.join(there)}", field="task")
        of = "this service" if wanted is None else f"model {wanted.name!r}"
        raise NotFound(f"task {name} is not one of {of}, which has: {', '.join(there)}", field="task")

    def model(self, name: str) -> Model:
        """The model of a name. Raises NotFound, which says what there is."""
        found = None if self.resident is None else self.resident.called(name)
        if found is None:
            raise NotFound(f"no model {name[:64]!r}; there are: {', '.join(self.models)}", field="model")
        return found

    def has(self, task: str, model: str | None) -> bool:
        """Whether the model has the task, or any, where none is named. Raises NotFound where there is no such model."""
        asked = self.models.values() if model is None else [self.model(model)]
        return any(task in one.tasks for one in asked)

    def entered(self, task: str, model: str | None) -> Served:
        """As `find`, and in its queue, which goes on for as long though other models take its place meanwhile."""
        while True:
            resident, served = self.resident, self.find(task, model)
            if served.queue.door.enter():
                return served
            if resident is self.resident:
                raise Unavailable("the service is shutting down")

    async def answer(self, request: TaskRequest, *, deadline: float | None = None) -> Answer:
        """The answers to a request's D documents. `deadline` is of `time.monotonic()`; if None, that of the HTTP
        request, or `limits.request_s` from now.

        Raises the errors of `serve/requests.py`.
        """
        if not self.ready:
            raise Unavailable("the models are being loaded")
        if self.closing:
            raise Unavailable("the service is shutting down")
        context = CURRENT.get()
        if deadline is None:
            deadline = context.deadline if context else time.monotonic() + self.limits.request_s
        served = self.entered(request.task, request.model)
        try:
            result = await self._answer(served, request, deadline)
        finally:
            served.queue.door.leave()
        self.metrics.answered(served.task, served.model.name, result)
        if context:
            inputs = result.table.num_rows
            context.facts |= {"task": served.task, "model": served.model.name, "inputs": inputs}
            context.facts |= {"tokens": context.facts.get("tokens", 0) + result.tokens}
        return result

    async def _answer(self, served: Served, request: TaskRequest, deadline: float | None) -> Answer:
        began = time.monotonic()
        context = CURRENT.get()
        waits = context is None or not context.background
        if waits:
            admit(served.queue, 0, self.limits, tokenizing=self.tokenizing.tokens(served.queue))
        # What nobody waits for makes no other request wait, and none be refused.
        guessed = self.tokenizing.of(served, request.columns) if waits else nullcontext()
        with span("tokenize", task=served.task, model=served.model.name), guessed:
            task, name, table, encoded = await self.in_pool(lambda: self.prepare(served, request))
        tokens = task.computed_tokens(encoded)
        check_tokens(served.queue, tokens, self.limits)
        if waits:
            admit(served.queue, tokens, self.limits)
        tokenized = time.monotonic()
        with span("inference", task=served.task, tokens=tokens):
            computed = await served.queue.process(task, served.index, encoded, deadline, name)

            def finish() -> tuple[pa.Table, list[Any]]:
                done = computed.finish()
                return done, task.answers(done, table)

            output, answers = await self.in_pool(finish)
        return Answer(
            answers=answers,
            table=output,
            tokens=tokens,
            tokenize_s=tokenized - began,
            queue_s=max(0.0, computed.started - tokenized),
            inference_s=max(0.0, computed.ended - computed.started),
            repeated=computed.repeated,
            known=computed.known,
        )

    def prepare(self, served: Served, request: TaskRequest) -> tuple[Task, bytes, pa.Table, pa.Table]:
        """The task with its options, what stands for it with them, the texts as a table, and the encoded table, all
        checked.
        """
        by_role = {option: True for role, option in served.bound.optional_roles.items() if role in request.columns}
        request = replace(request, options=by_role | dict(request.options))
        check_options(served.bound, request, self.limits)
        try:
            task = self.bound.find(served, request.options)
        except UserError as error:
            raise as_invalid(error, request) from None
        table = check_columns(task, request, self.limits)
        check_overlap(task, request, served.model.config)
        role = request.field(task.roles[0])
        try:
            encoded = task.prepare(table, served.model.tokenizer_cutting(request.cutting.side))
        except UnfitRows as error:
            first = min(error.failures)
            raise Invalid(f"{role}.{first}", error.failures[first][1]) from None
        except TokenizerError as error:
            raise Invalid(f"{role}.{error.index}", error.reason) from None
        except UserError as error:
            raise as_invalid(error, request) from None
        check_encoded(task, encoded, self.limits, served.model.config, role)
        if request.cutting.whole:
            check_whole(encoded, request.field(task.roles[-1]), served.model.max_length, request.cutting.hint)
        return task, served.known_as(request.options), table, encoded

    async def in_pool(self, work: Callable[[], T]) -> T:
        context = CURRENT.get()
        pool = self.behind if context is not None and context.background else self.pool
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def trouble(self) -> str | None:
        """Why the service is not healthy: an engine that hangs or is broken; None where all is well."""
        queues = () if self.resident is None else self.resident.queues
        return next((why for queue in queues if (why := queue.trouble(self.limits.forward_s))), None)

    def tell_state(self) -> None:
        """How the service stands now, to its metrics: to be called before they are read."""
        tell = self.metrics.tell
        tell(READY, float(self.ready))
        tell(HEALTHY, float(self.trouble() is None))
        tell(IN_FLIGHT, self.in_flight)
        for queue in () if self.resident is None else self.resident.queues:
            tell(QUEUE_REQUESTS, queue.requests, queue.name)
            tell(QUEUE_TOKENS, queue.backlog, queue.name)
        cache = None if self.resident is None else self.resident.cache
        if cache is not None:
            tell(CACHE_BYTES, cache.held)
            tell(CACHE_RESULTS, len(cache.values))
        self.metrics.forget(MODEL)
        for model in self.models.values():
            tell(MODEL, 1.0, model.name, model.digest[:12], model.dtype)

    def close(self) -> None:
        """No new requests; those that were accepted are still answered."""
        self.closing = True
        if self.resident is not None:
            self.resident.close()

    async def _warm_up(self, models: Models) -> None:
        """One document through each task; a full batch through each encoder, which also measures its rate."""
        for served in models.served:
            example = served.bound.example(served.model.tokenizer.mask_token)
            columns = {role: [text] for role, text in example.items()}
            request = TaskRequest(served.task, columns, served.bound.example_options)
            try:
                await self._answer(served, request, None)
            except Invalid as error:
                raise UserError(f"model {served.model.name}, task {served.task}: {error}") from None


def as_invalid(error: UserError, request: TaskRequest) -> Invalid:
    """The error of a task as the request's: of the option that its message is about, by the caller's name for it, and
    without the task's name, which the request has said.
    """
    text = str(error)
    words = text.replace("'", " ").replace(":", " ").replace(",", " ").replace(".", " ").split()
    name = next((word for word in words if word in request.options), None)
    plain = text.partition(": ")[2] if text.startswith("task ") else text
    return Invalid(None if name is None else request.field(name), plain)
