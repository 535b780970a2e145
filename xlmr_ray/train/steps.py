"""Which examples make each step, in which order, and which of them are computed together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.engine.batching import longest_first, next_batch


@dataclass(frozen=True)
class TrainSteps:
    """The steps of a training: `count` of them, `an_epoch` in each pass over E examples, of `batch_size` each (the
    last one of a pass has the rest). They follow from `seed` and the step's number, so that any can be made again.
    """

    examples: int
    batch_size: int
    count: int
    seed: int

    @classmethod
    def of(cls, examples: int, batch_size: int, epochs: float, seed: int) -> "TrainSteps":
        """As many steps as make so many passes, at least one."""
        an_epoch = -(-examples // batch_size)
        return cls(examples, batch_size, max(1, round(epochs * an_epoch)), seed)

    @property
    def an_epoch(self) -> int:
        return -(-self.examples // self.batch_size)

    def epoch(self, step: int) -> int:
        return step // self.an_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last one of its epoch, or of all."""
        return (step + 1) % self.an_epoch == 0 or step + 1 == self.count

    def chosen(self, step: int) -> NDArray[np.int64]:
        """The examples of a step."""
        epoch, place = divmod(step, self.an_epoch)
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.examples)
        return order[place * self.batch_size : (place + 1) * self.batch_size]


def parts_within(chosen: NDArray[np.int64], tokens: NDArray[np.int64], max_tokens: int) -> Iterator[NDArray[np.int64]]:
    """The chosen of E examples, with so many `tokens (E)` each, in parts of at most `max_tokens`, the longest first."""
    order = longest_first(tokens[chosen])
    while len(order):
        part = next_batch(tokens[chosen], order, max_tokens)
        yield chosen[part]
        order = order[len(part) :]
