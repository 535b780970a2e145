"""Hive partitions: the folders `lang=de` on a file's path are columns with one value for all of its rows."""

from __future__ import annotations

from urllib.parse import unquote

NULL = "__HIVE_DEFAULT_PARTITION__"


def partitions_of(key: str) -> dict[str, str | None]:
    """The columns that the path of a file names, each with its value: a string always, whatever it looks like, so that
    `year=2024` and `id=007` are what they say. Characters that Hive and Spark spell `%20` are read back; their name for
    a missing value is null. Of two folders of one name the deeper counts.
    """
    found: dict[str, str | None] = {}
    for folder in key.split("/")[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name:
            found[unquote(name)] = None if value == NULL else unquote(value)
    return found
