"""How often this process has tried a request to a store again. A counter that goes up, for the metrics."""

import threading

_lock = threading.Lock()
_total = 0


def count() -> None:
    """One more."""
    global _total
    with _lock:
        _total += 1


def total() -> int:
    return _total
