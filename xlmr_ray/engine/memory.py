"""When memory runs out, in a job, in the service and in generation: free, shrink to what fits, grow back slowly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

# Batches that fit before a budget that was cut grows, and the most that failures on the way make of that.
PATIENCE, MOST_PATIENCE = 64, 4096
# What an error says where memory ran out, beside torch.OutOfMemoryError: CUDA's own allocations, libraries' work spaces
# (https://docs.nvidia.com/cuda/cublas/#cublasstatus-t), and the CPU's allocator, which has no exception for it.
SIGNS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that torch found no memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


def attempt(work: Callable[[], T]) -> T | None:
    """The result of `work`; None where memory ran out. Other errors are raised.

    The error is gone when this returns, and with its traceback the tensors of the call that failed: to free memory or
    to try again inside an `except` would keep them.
    """
    try:
        return work()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    return None


def free(device: torch.device) -> None:
    """Gives cached memory back: blocks of other sizes may be what is missing. Not inside an `except`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass
class CutBudget:
    """How a budget of tokens goes down where memory runs out, and up again.

    `before` is the budget before the first cut, 0 where there was none; `calm` the batches that fitted since the last
    change, `patience` how many of them make the budget grow by an eighth. It doubles each time when memory runs out
    after a batch that fitted: the trial costs a batch.
    """

    before: int = 0
    calm: int = 0
    patience: int = PATIENCE

    def cut(self, budget: int, tokens: int) -> int:
        """The budget after a batch of so many tokens did not fit: half of these, or what it is where that is less, as
        after another half of a batch that was divided.
        """
        if self.before and self.calm:
            self.patience = min(2 * self.patience, MOST_PATIENCE)
        self.before, self.calm = self.before or budget, 0
        return max(1, min(budget, tokens // 2))

    def grown(self, budget: int) -> int:
        """The budget after a batch that fitted."""
        if not self.before:
            return budget
        self.calm += 1
        if self.calm < self.patience:
            return budget
        # One batch of calm: should the larger budget fail at once, that was a trial.
        self.calm, larger = 1, min(self.before, budget + max(1, budget // 8))
        if larger == self.before:
            self.before = 0
        return larger
