"""What the queue does: which sequences a batch takes, what it drops, how it goes on after failures."""

import asyncio
import gc
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xlmr_ray.engine.engine import Engine as RealEngine
from xlmr_ray.engine.engine import EngineStats
from xlmr_ray.engine.memory import CutBudget
from xlmr_ray.serve.queue import batcher as module
from xlmr_ray.serve.queue.batcher import Batcher, Ticket
from xlmr_ray.serve.requests import BackendFailed, TimedOut, Unavailable

TASK = SimpleNamespace(unit="sequence", layers=())


class Engine:
    """As much of an engine as the queue asks for: results are the first ids of the sequences."""

    def __init__(self, max_tokens=100):
        self.max_tokens, self.stats, self.batches, self.gate = max_tokens, EngineStats(), [], None
        self.device, self.memory = torch.device("cpu"), CutBudget()

    shrink = RealEngine.shrink


def fake(engine, parts):
    if engine.gate is not None:
        engine.gate.wait()
    engine.batches.append([(int(part.ids[0]), part.lengths.tolist()) for part in parts])
    firsts = [np.concatenate([[0], np.cumsum(part.lengths)[:-1]]) for part in parts]
    return [part.ids[first].astype(np.float32) for part, first in zip(parts, firsts, strict=True)]


@pytest.fixture
def made(monkeypatch):
    """A batcher whose engine waits until `go`, so that a test says what is in the queue."""
    monkeypatch.setattr(module, "compute_together", lambda engine, parts: fake(engine, parts))
    import threading

    engine = Engine()
    engine.gate = threading.Event()
    batcher = Batcher(engine, "test", lambda stats: None)
    yield batcher
    engine.gate.set()
    batcher.door.close()


def ticket(name, lengths, deadline=None):
    ids = np.concatenate([np.full(length, name, np.int32) for length in lengths])
    return Ticket(TASK, 0, ids, np.concatenate([[0], np.cumsum(lengths)]), None, deadline)


async def submitted(batcher, *tickets):
    """Tasks that wait, and the queue as it then is; a first small one keeps the engine busy."""
    first = asyncio.create_task(batcher.submit(ticket(0, [1])))
    while batcher.computing is None:
        await asyncio.sleep(0.001)
    tasks = []
    for one in tickets:
        tasks.append(asyncio.create_task(batcher.submit(one)))
        await asyncio.sleep(0)
    return [first, *tasks]


def test_a_short_one_does_not_wait_for_all_of_a_long_one(made):
    async def go():
        tasks = await submitted(made, ticket(1, [50] * 10), ticket(2, [40]), ticket(3, [10, 10]))
        made.engine.gate.set()
        return await asyncio.gather(*tasks)

    results = asyncio.run(go())
    assert [r.tolist() for r in results] == [[0], [1] * 10, [2], [3, 3]]
    second = made.engine.batches[1]
    assert {name for name, _ in second} == {1, 2, 3}  # all three are in the first batch that has room
    assert len(made.engine.batches) == 1 + 6


def test_batches_keep_to_the_budget_and_are_filled(made):
    async def go():
        tasks = await submitted(made, *(ticket(k, [30 + k]) for k in range(1, 9)))
        made.engine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    sizes = [sum(sum(lengths) for _, lengths in batch) for batch in made.engine.batches[1:]]
    assert all(size <= 100 for size in sizes)
    assert all(size >= 60 for size in sizes[:-1])
    assert made.tokens == 0


def test_a_sequence_longer_than_the_budget_goes_alone_and_is_not_passed_over(made):
    async def go():
        tasks = await submitted(made, ticket(1, [10]), ticket(2, [300]), *(ticket(k, [90]) for k in range(3, 8)))
        made.engine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())
    places = [place for place, batch in enumerate(made.engine.batches) if (2, [300]) in batch]
    assert places
    assert places[0] <= 3
    assert len(made.engine.batches[places[0]]) == 1


def test_a_long_one_is_served_under_a_stream_of_short_ones(made):
    made.engine.gate.set()

    async def go():
        long = asyncio.create_task(made.submit(ticket(1, [20] * 50)))
        count = 0
        while not long.done():
            await asyncio.gather(*(made.submit(ticket(k, [20])) for k in range(2, 10)))
            count += 1
            assert count < 500
        return count

    assert asyncio.run(go()) < 500


def test_cancelled_and_late_ones_are_not_computed(made):
    async def go():
        now = time.monotonic()
        tasks = await submitted(made, ticket(1, [10]), ticket(2, [10], now + 0.05), ticket(3, [10]))
        tasks[1].cancel()
        with pytest.raises(TimedOut):
            await tasks[2]
        made.engine.gate.set()
        await asyncio.gather(tasks[0], tasks[3])

    asyncio.run(go())
    assert {name for batch in made.engine.batches for name, _ in batch} == {0, 3}
    assert made.tokens == 0
    assert made.requests == 0


def test_memory_that_runs_out_halves_the_budget(made, monkeypatch):
    def small(engine, parts):
        if sum(len(part.ids) for part in parts) > 30:
            raise torch.OutOfMemoryError("no memory")
        return fake(engine, parts)

    monkeypatch.setattr(module, "compute_together", small)
    made.engine.gate.set()

    async def go():
        fine = await asyncio.gather(*(made.submit(ticket(k, [12, 12])) for k in range(5)))
        with pytest.raises(BackendFailed, match="31 tokens do not fit"):
            await made.submit(ticket(9, [31]))
        return fine

    assert [r.tolist() for r in asyncio.run(go())] == [[k, k] for k in range(5)]
    assert made.engine.max_tokens < 100
    assert made.trouble(60) is None


def test_a_batch_that_does_not_fit_shrinks_to_what_does_and_is_not_kept(made, monkeypatch):
    """One document of 64 tokens in 16 sequences, room for 10 tokens: no sibling of a failed batch halves it again."""
    failed, alive, sizes = [], [], []

    def small(engine, parts):
        tokens = sum(len(part.ids) for part in parts)
        alive.append(sum(ref() is not None for ref in failed))
        sizes.append(tokens)
        computed = torch.empty(tokens)
        if tokens > 10:
            failed.append(weakref.ref(computed))
            raise torch.AcceleratorError("CUDA error: out of memory")
        return fake(engine, parts)

    monkeypatch.setattr(module, "compute_together", small)
    made.engine.gate.set()

    async def go():
        await made.submit(ticket(1, [4] * 16))

    gc.disable()
    try:
        asyncio.run(go())
    finally:
        gc.enable()
    assert sizes == [64, 32, 16, *[8] * 8]
    assert made.engine.max_tokens == 8
    assert not any(alive)
    assert made.trouble(60) is None  # that error is no lost device


def test_a_device_that_fails_makes_it_unhealthy(made, monkeypatch):
    def lost(engine, parts):
        raise torch.AcceleratorError("the device is lost")

    monkeypatch.setattr(module, "compute_together", lost)
    made.engine.gate.set()

    async def go():
        with pytest.raises(BackendFailed):
            await made.submit(ticket(1, [10]))
        with pytest.raises(Unavailable):
            await made.submit(ticket(2, [10]))

    asyncio.run(go())
    assert "the device failed" in made.trouble(60)


def test_a_pass_that_hangs_is_told(made):
    async def go():
        tasks = await submitted(made)
        await asyncio.sleep(0.05)
        trouble = made.trouble(0.01), made.trouble(60)
        made.engine.gate.set()
        await asyncio.gather(*tasks)
        return trouble

    hanging, fine = asyncio.run(go())
    assert "a forward pass has taken" in hanging
    assert fine is None


def test_results_that_are_no_numbers_fail_their_own_request(made, monkeypatch):
    def nan(engine, parts):
        return [np.where(values == 2, np.nan, values) for values in fake(engine, parts)]

    monkeypatch.setattr(module, "compute_together", nan)

    async def go():
        tasks = await submitted(made, ticket(1, [10]), ticket(2, [10]))
        made.engine.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    _, fine, bad = asyncio.run(go())
    assert fine.tolist() == [1]
    assert isinstance(bad, BackendFailed)


def test_closing_waits_for_those_within(made):
    made.engine.gate.set()
    assert made.door.enter()
    made.door.close()

    async def go():
        return await made.submit(ticket(1, [10]))

    assert asyncio.run(go()).tolist() == [1]
    made.door.leave()
    made.thread.join(5)
    assert not made.thread.is_alive()
    assert not made.door.enter()
