"""The end of an error about a name that is not known."""

import difflib
from collections.abc import Collection


def nearest_or_all(name: str, known: Collection[str], all_of: str) -> str:
    """The nearest name that is known, or all of them, introduced by `all_of`."""
    near = difflib.get_close_matches(name, known, 1)
    return f", did you mean {near[0]!r}?" if near else f"; {all_of} {', '.join(known)}"
