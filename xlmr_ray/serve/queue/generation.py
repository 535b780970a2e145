"""Text generation's own queue and thread: a text takes many passes of its model, and nobody else's request waits for
them.
"""

import asyncio
import json
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import torch

from xlmr_ray.engine.generator import Generator, Unwanted
from xlmr_ray.engine.result_cache import ResultCache
from xlmr_ray.serve.logs import log_failure
from xlmr_ray.serve.queue.base import Computed, Door, smoothed
from xlmr_ray.serve.requests import BackendFailed, ServiceError, TimedOut, Unavailable
from xlmr_ray.tasks.task import Task

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Prompt:
    """One document of a request, and the `tokens` that it may take with its text, which is kept under its `key`."""

    task: Task
    encoded: pa.Table
    tokens: int
    deadline: float | None
    key: bytes = b""
    done: asyncio.Future[pa.Table] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    started: float = 0.0
    ended: float = 0.0
    over: bool = False
    known: bool = False

    def wanted(self) -> bool:
        """Whether somebody waits for it still."""
        return not self.over and (self.deadline is None or time.monotonic() <= self.deadline)


class GenerationQueue:
    """The queue of one generator: a document at a time, and of each request in turn, since its documents are put in
    one by one.
    """

    def __init__(self, generator: Generator, name: str, cache: ResultCache[Any] | None = None) -> None:
        self.generator, self.name, self.cache = generator, name, cache
        self.changed = threading.Condition()
        self.door = Door(self.changed)
        self.queue: deque[Prompt] = deque()
        self.computing: tuple[float, int] | None = None
        self.rate = 0.0
        self.full_rate = 0.0  # a prompt is what is computed at once: there are no batches
        self.broken: str | None = None
        self.thread = threading.Thread(target=self.run, name=f"generator-{name}", daemon=True)
        self.thread.start()

    @property
    def max_tokens(self) -> int:
        return self.generator.max_tokens

    async def process(
        self, task: Task, index: int, encoded: pa.Table, deadline: float | None, name: bytes = b""
    ) -> Computed:
        """As `RequestQueue` says; the documents one after another, and equal ones once."""
        tables, started, ended, known = dict[bytes, pa.Table](), 0.0, 0.0, 0
        keys = []
        for row in range(encoded.num_rows):
            document = encoded.slice(row, 1)
            key = blake2b(name + json.dumps(document.to_pylist()).encode(), digest_size=16).digest()
            keys.append(key)
            if key in tables:
                continue
            prompt = Prompt(task, document, task.computed_tokens(document), deadline, key)
            tables[key] = await self.submit(prompt)
            known += prompt.known
            started, ended = started or prompt.started, prompt.ended
        return Computed(
            lambda: pa.concat_tables(tables[key] for key in keys), started, ended, len(keys) - len(tables), known
        )

    def kept(self, prompt: Prompt) -> pa.Table | None:
        """The prompt's row of the output, where it was kept."""
        found: bytes | None = None if self.cache is None else self.cache.find(prompt.key)
        if found is None:
            return None
        prompt.known = True
        return pa.ipc.open_stream(found).read_all()

    def keep(self, prompt: Prompt, table: pa.Table) -> None:
        if self.cache is not None:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            data = sink.getvalue().to_pybytes()
            self.cache.keep(prompt.key, data, len(data))

    async def submit(self, prompt: Prompt) -> pa.Table:
        """The document's row of the output table. Raises TimedOut past the deadline, BackendFailed where there is no
        text. One that is cancelled is not begun, or stops at the next token.
        """
        with self.changed:
            if self.broken:
                raise Unavailable("the generator has stopped")
            if (kept := self.kept(prompt)) is not None:
                prompt.started = prompt.ended = time.monotonic()
                return kept
            self.queue.append(prompt)
            self.changed.notify()
        try:
            timeout = None if prompt.deadline is None else prompt.deadline - time.monotonic()
            return await asyncio.wait_for(prompt.done, timeout)
        except TimeoutError:
            raise TimedOut("the request's time was over before its text was written") from None
        finally:
            prompt.over = True

    @property
    def requests(self) -> int:
        return sum(not prompt.over for prompt in list(self.queue))

    @property
    def backlog(self) -> int:
        """Tokens that wait or are written now."""
        now = self.computing
        return sum(prompt.tokens for prompt in list(self.queue) if not prompt.over) + (now[1] if now else 0)

    def trouble(self, limit: float) -> str | None:
        """Why it writes nothing any more."""
        now = self.computing
        if self.broken:
            return f"generator {self.name}: {self.broken}"
        if now is not None and (seconds := time.monotonic() - now[0]) > limit:
            return f"generator {self.name}: a text has taken {seconds:.0f} s"
        return None if self.thread.is_alive() or self.door.shut else f"generator {self.name}: its thread has ended"

    def run(self) -> None:
        while True:
            with self.changed:
                while not self.queue:
                    if self.door.done():
                        return
                    self.changed.wait()
                prompt = self.queue.popleft()
                if not prompt.wanted():
                    continue
                prompt.started = time.monotonic()
                self.computing = (prompt.started, prompt.tokens)
            self.write(prompt)
            self.computing = None

    def write(self, prompt: Prompt) -> None:
        table: pa.Table | None = None
        failure: ServiceError | None = None
        try:
            table = self.kept(prompt)
            if table is None:
                self.generator.set_tasks([prompt.task])
                written = self.generator.run(prompt.encoded, prompt.wanted)
                table = written.table
                for _, message in written.failed.values():
                    failure = BackendFailed(message)
                if failure is None:
                    self.keep(prompt, table)
        except Unwanted:
            return  # who waited for it knows
        except Exception as error:
            if isinstance(error, torch.AcceleratorError):  # the device's context is lost: only a new process helps
                self.broken = f"the device failed: {type(error).__name__}"
            log_failure(log, f"generator {self.name}", error)
            failure = BackendFailed("the model failed on this request")
        prompt.ended = time.monotonic()
        if not prompt.known:
            self.rate = smoothed(self.rate, prompt.tokens / (prompt.ended - prompt.started))
        loop = prompt.done.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle_prompt, prompt, table, failure)


def settle_prompt(prompt: Prompt, table: pa.Table | None, failure: ServiceError | None) -> None:
    if prompt.done.done():
        return
    if failure is not None:
        prompt.done.set_exception(failure)
    else:
        prompt.done.set_result(table)
