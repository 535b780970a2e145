"""Text generation's queue: a text that nobody waits for is not begun, and not written to its end."""

import asyncio
import threading
import time

import pytest
import torch

from xlmr_ray.model.generation.steps import DecodingSteps
from xlmr_ray.serve.queue.generation import GenerationQueue
from xlmr_ray.serve.requests import BackendFailed, TimedOut, Unavailable
from xlmr_ray.serve.task_request import TaskRequest

LONG = {"max_new_tokens": 64, "min_new_tokens": 64}


@pytest.fixture
def held(monkeypatch):
    """A generator that waits in its third step until it is let go; counts the steps."""

    class Held:
        steps, begun, go = 0, threading.Event(), threading.Event()

    plain = DecodingSteps.logits

    def logits(self, ids):
        Held.steps += 1
        if Held.steps == 3:
            Held.begun.set()
            assert Held.go.wait(60)
        return plain(self, ids)

    monkeypatch.setattr(DecodingSteps, "logits", logits)
    return Held


def test_stops_at_the_next_token_when_the_client_has_gone(service, held):
    async def go():
        asked = asyncio.create_task(service.answer(TaskRequest("text-generation", {"text": ["one", "two"]}, LONG)))
        waiting = asyncio.create_task(service.answer(TaskRequest("text-generation", {"text": ["three"]}, LONG)))
        await asyncio.to_thread(held.begun.wait, 60)
        for task in (asked, waiting):
            task.cancel()
        await asyncio.gather(asked, waiting, return_exceptions=True)
        held.go.set()
        # The next one is the fourth step: nothing of the other two is written any more.
        four = {**LONG, "max_new_tokens": 4, "min_new_tokens": 4}
        return await service.answer(TaskRequest("text-generation", {"text": ["four"]}, four))

    answer = asyncio.run(go())
    assert answer.answers[0][0]["generated_text"].startswith("four")
    assert held.steps == 3 + 4


def test_stops_when_its_time_is_over(service, held):
    async def go():
        late = time.monotonic() + 0.3
        asked = asyncio.create_task(
            service.answer(TaskRequest("text-generation", {"text": ["one"]}, LONG), deadline=late)
        )
        await asyncio.to_thread(held.begun.wait, 60)
        with pytest.raises(TimedOut):
            await asked
        held.go.set()
        two = {"max_new_tokens": 2, "min_new_tokens": 2}
        return await service.answer(TaskRequest("text-generation", {"text": ["four"]}, two))

    asyncio.run(go())
    assert held.steps == 3 + 2


def test_a_device_that_fails_makes_it_unhealthy(service, monkeypatch):
    def lost(self, ids):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DecodingSteps, "logits", lost)
    (only,) = (queue for queue in service.resident.queues if isinstance(queue, GenerationQueue))
    monkeypatch.setattr(only, "broken", None)  # and again afterwards: other tests share the service

    async def go(kind):
        with pytest.raises(kind):
            await service.answer(TaskRequest("text-generation", {"text": ["one"]}, LONG))

    assert service.trouble() is None
    asyncio.run(go(BackendFailed))
    asyncio.run(go(Unavailable))
    assert "the device failed" in service.trouble()
