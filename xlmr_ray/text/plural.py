"""1 file, 2 files."""


def plural(number: int, thing: str) -> str:
    """How many there are of a thing whose plural ends in s, for people to read."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
