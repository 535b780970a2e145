"""2 h 5 min."""


def duration(seconds: float) -> str:
    """Seconds in the units that people read: `3 d 4 h`, `2 h 5 min`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    index = next(i for i, (_, length) in enumerate(units) if seconds >= length)
    (name, length), (smaller, part) = units[index], units[index + 1]
    whole, rest = divmod(round(seconds / part), length // part)
    return f"{whole} {name} {rest} {smaller}"
