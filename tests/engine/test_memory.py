"""What counts as a lack of memory, what is kept of a batch that failed, and how a budget shrinks and grows."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from tests.engine.test_engine import documents
from tests.models import save_classifier
from xlmr_ray.engine.engine import IN_FLIGHT, Engine
from xlmr_ray.engine.memory import MOST_PATIENCE, PATIENCE, CutBudget, attempt, out_of_memory
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_errors_that_are_a_lack_of_memory(error: RuntimeError) -> None:
    def work() -> None:
        raise error

    assert out_of_memory(error)
    assert attempt(work) is None


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), ValueError("memory")]
)
def test_other_errors_are_raised(error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)):
        attempt(work)
    assert attempt(lambda: 3) == 3


def test_a_budget_shrinks_to_half_of_what_did_not_fit_and_grows_back_by_eighths() -> None:
    memory, budget = CutBudget(), 64
    assert memory.grown(budget) == 64  # nothing was cut
    for tokens in (64, 32, 32, 16, 16):  # halves of one batch
        budget = memory.cut(budget, tokens)
    assert budget == 8
    sizes = []
    for _ in range(40 * PATIENCE):
        larger = memory.grown(budget)
        if larger != budget:
            sizes.append(larger)
        budget = larger
    assert sizes[:4] == [9, 10, 11, 12]
    assert budget == max(sizes) == sizes[-1] == 64
    assert all(later - one <= max(1, one // 8) for one, later in pairwise(sizes))


def test_a_trial_that_fails_makes_the_next_one_later() -> None:
    memory = CutBudget()
    budget, trials = memory.cut(100, 100), []
    for batch in range(20 * PATIENCE):
        larger = memory.grown(budget)
        if larger > budget:
            trials.append(batch)
            memory.cut(larger, larger)  # it did not fit
    waits = [later - one for one, later in pairwise(trials)]
    assert waits == sorted(waits)
    assert waits[1] > 1.5 * waits[0] > PATIENCE
    assert memory.patience <= MOST_PATIENCE


def test_a_batch_that_failed_is_gone_before_memory_is_freed(tmp_path, monkeypatch) -> None:
    folder = save_classifier(tmp_path)
    engine = Engine.load(folder, [bind_task("embedding", folder, {})], EngineSettings(device="cpu", max_tokens=128))
    failed: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    real = Engine.compute

    def starved(self, batch, parts):
        alive.append(sum(ref() is not None for ref in failed))
        if batch.tokens > 20:
            failed.append(weakref.ref(batch.input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, parts)

    monkeypatch.setattr(Engine, "compute", starved)
    monkeypatch.setattr(
        "xlmr_ray.engine.engine.free", lambda device: alive.append(sum(r() is not None for r in failed))
    )
    gc.disable()
    try:
        got = engine.run(documents([10] * 12))
    finally:
        gc.enable()
    assert not got.failed
    assert len(failed) == 3  # 120, 64 and 32 tokens' worth
    assert not any(alive)


def test_results_do_not_wait_for_the_whole_shard(tmp_path, monkeypatch) -> None:
    folder = save_classifier(tmp_path)
    engine = Engine.load(
        folder, [bind_task("feature-extraction", folder, {})], EngineSettings(device="cpu", max_tokens=32)
    )
    kept: list[weakref.ref[torch.Tensor]] = []
    most: list[int] = []
    real = Engine.compute

    def counted(self, batch, parts):
        outputs = real(self, batch, parts)
        kept.extend(map(weakref.ref, outputs))
        most.append(sum(ref() is not None for ref in kept))
        return outputs

    monkeypatch.setattr(Engine, "compute", counted)
    got = engine.run(documents([16] * 40))
    assert not got.failed
    assert len(most) == 20
    assert max(most) <= IN_FLIGHT + 2
