"""Results of a launch's texts in one place, which all of its encoders ask: a text that is in several shards is computed
once, whichever encoders the shards come to.

An actor of the launch holds them, in a bounded number of bytes, and nothing hangs on it: what it does not have, or does
not answer, is computed, and on a CPU to the last bit the same. It ends with the launch.
"""

import logging
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from xlmr_ray.engine.result_cache import ResultCache

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for an answer, after which an encoder goes on by itself


class ResultHolder:
    """The actor. Keys come and go as one string of bytes, 16 a key."""

    def __init__(self, most: int) -> None:
        self.cache: ResultCache[bytes] = ResultCache(most)

    def find(self, keys: bytes) -> list[bytes | None]:
        return [self.cache.find(keys[at : at + 16]) for at in range(0, len(keys), 16)]

    def keep(self, keys: bytes, values: list[bytes]) -> None:
        for number, value in enumerate(values):
            self.cache.keep(keys[16 * number : 16 * number + 16], value, len(value))


@dataclass
class SharedResults:
    """`KnownResults` of an actor, on any machine."""

    actor: ActorHandle
    lost: bool = False

    @classmethod
    def start(cls, most: int) -> "SharedResults":
        return cls(ray.remote(ResultHolder).options(num_cpus=0).remote(most))

    def find(self, keys: list[bytes]) -> list[bytes | None]:
        if not self.lost:
            try:
                # In the order of the calls, so that what was left before is kept by then, and never piles up.
                found: list[bytes | None] = ray.get(self.actor.find.remote(b"".join(keys)), timeout=PATIENCE)
                return found
            except ray.exceptions.RayError as error:
                self.lost = True
                log.warning("results of equal texts of other shards cannot be had: %s", type(error).__name__)
        return [None] * len(keys)

    def keep(self, results: dict[bytes, bytes]) -> None:
        if not self.lost:
            self.actor.keep.remote(b"".join(results), list(results.values()))
