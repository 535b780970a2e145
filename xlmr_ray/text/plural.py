"""1 file, 2 files; a, b, c and 5 more."""

from collections.abc import Sequence


def plural(number: int, thing: str) -> str:
    """How many there are of a thing whose plural ends in s, for people to read."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """A few of the names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
