"""The workers that make each step together: which examples each computes, and what they add up or show each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from xlmr_ray.engine.batching import longest_first

T = TypeVar("T")


class WorkerGroup(Protocol):
    """`size` workers, of which this is number `rank`. All call the same methods in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def add(self, tensor: Tensor) -> None:
        """Makes it, in place, the sum of all workers' tensors, the same to the last bit in each."""

    def gather(self, value: T) -> list[T]:
        """The values of all workers, by their ranks."""


@dataclass(frozen=True)
class OneWorker:
    """A training in one process."""

    rank: int = 0
    size: int = 1

    def add(self, tensor: Tensor) -> None:
        pass

    def gather(self, value: T) -> list[T]:
        return [value]


class ProcessGroup:
    """The processes of torch's default process group, which has begun."""

    @property
    def rank(self) -> int:
        return distributed.get_rank()

    @property
    def size(self) -> int:
        return distributed.get_world_size()

    def add(self, tensor: Tensor) -> None:
        distributed.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        found: list[T | None] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]


def dealt_out(chosen: NDArray[np.int64], tokens: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """The `chosen` of E examples, with so many `tokens (E)` each, for each worker: dealt out from the longest to the
    shortest, so that each has about as many tokens. A worker has none where there are more workers than examples.
    """
    if size == 1:
        return [chosen]
    ordered = chosen[longest_first(tokens[chosen])]
    return [ordered[rank::size] for rank in range(size)]


def agreed(group: WorkerGroup, *wishes: bool) -> list[bool]:
    """Each wish, whether any of the workers has it."""
    if group.size == 1:
        return list(wishes)
    votes = torch.tensor(wishes, dtype=torch.float32)
    group.add(votes)
    return [bool(vote) for vote in votes.tolist()]


def total_of(group: WorkerGroup, number: float) -> float:
    """The sum of all workers' numbers."""
    if group.size == 1:
        return number
    total = torch.tensor(number, dtype=torch.float64)
    group.add(total)
    return float(total)


def add_gradients(group: WorkerGroup, parameters: Sequence[nn.Parameter]) -> None:
    """Adds up the gradients of all workers. A parameter has none only where it has none in any of them."""
    if group.size == 1:
        return
    for parameter, there in zip(parameters, agreed(group, *(p.grad is not None for p in parameters)), strict=True):
        if not there:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        group.add(parameter.grad)
