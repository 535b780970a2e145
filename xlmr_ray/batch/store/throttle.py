"""How many requests a process has under way at a store: half as many once it says to slow down, then more again.

Backing off only spreads the same load over time; a store that throttles needs less of it. Additive increase and
multiplicative decrease is how TCP finds what a network carries (Jacobson 1988), and it shares fairly among processes
that do not know of each other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

MOST = 32  # as many connections as the client's pool holds

_known: dict[tuple[int, str], Throttle] = {}
_lock = threading.Lock()


class Throttle:
    """At most `limit` calls at a time, between 1 and `most`; further callers wait for their turn."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.limit = float(most)
        self.running = 0
        self.cuts = 0
        self._turn = threading.Condition()

    def call(self, function: Callable[[], T], slow: Callable[[Exception], bool]) -> T:
        """`function()`, in its turn. An exception that is `slow` halves the limit, an answer raises it."""
        with self._turn:
            self._turn.wait_for(lambda: self.running < int(self.limit))
            self.running += 1
            cuts = self.cuts
        answered = throttled = False
        try:
            result = function()
            answered = True
            return result
        except Exception as error:
            throttled = slow(error)
            raise
        finally:
            with self._turn:
                self.running -= 1
                if answered:
                    self.limit = min(float(self.most), self.limit + 1 / self.limit)
                elif throttled and cuts == self.cuts:
                    # those that were under way together are one sign, not many
                    self.limit = max(1.0, self.limit / 2)
                    self.cuts += 1
                self._turn.notify_all()


def throttle_of(name: str) -> Throttle:
    """The one that this process has for the store of this name. A fork must not share its parent's locks."""
    with _lock:
        return _known.setdefault((os.getpid(), name), Throttle())
