"""Objects of a run as JSON: one spelling for equal content; long lists an item a line, so that they read by line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed

VERSION = 1
BLOCK = 4 << 20  # bytes read at a time of what need not be understood
_ENCODE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


class Damaged(JobFailed):
    """An object of the run is not what was written: unreadable, or its checksum is wrong."""


def canonical(content: object) -> bytes:
    """JSON with one spelling for equal content."""
    return _ENCODE(content).encode()


def parsed(data: bytes, url: str) -> dict[str, Any]:
    """A JSON object. Raises `Damaged`, naming `url`."""
    try:
        content = json.loads(data)
    except ValueError:
        raise Damaged(f"{url}: is damaged: not JSON") from None
    if not isinstance(content, dict):
        raise Damaged(f"{url}: is damaged: not a JSON object")
    return content


def by_line(head: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> bytes:
    """A JSON object whose last member is the list `name`, one item a line, so that it reads whole or by line."""
    return b"".join(json_pieces({key: value for key, value in head.items() if key != name}, {name: items}))


def json_pieces(head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[bytes]:
    """The same for several lists, in the order given, an item at a time; the head and the name of the first list are
    the first line.
    """
    start = canonical(head)[:-1]
    yield start + (b"," if len(start) > 1 else b"")
    for number, (name, items) in enumerate(lists.items(), 1):
        yield from list_pieces(name, map(canonical, items), last=number == len(lists))


def list_pieces(name: str, lines: Iterable[bytes], *, last: bool = True) -> Iterator[bytes]:
    """One of the lists, whose items are `lines`."""
    yield json.dumps(name).encode() + b":["
    separator = b"\n"
    for line in lines:
        yield separator + line
        separator = b",\n"
    yield b"\n]}\n" if last else b"\n],"


def first_of(line: bytes, url: str) -> dict[str, Any]:
    """The head of what `json_pieces` made, from its first line. Raises `Damaged`."""
    if line.endswith(b'":[\n'):  # a list, an item a line, comes next
        line = line[: max(line.rfind(b',"'), 1)] + b"}"
    return parsed(line, url)


def head_of(store: Store, key: str) -> dict[str, Any]:
    """What a stored object says before its lists; reads the first line only. Raises FileNotFoundError, `Damaged`."""
    with store.open(key) as file:
        line = file.readline()
        return first_of(line, store.url(key)) if line.endswith(b":[\n") else parsed(line + file.read(), store.url(key))


def lines_of(lines: BinaryIO, name: str, url: str) -> Iterator[Any]:
    """The items of the list `name` in what `by_line` wrote, read one at a time; any other JSON object is read whole."""
    line = lines.readline()
    wanted = json.dumps(name).encode() + b":[\n"
    if not line.endswith(b":[\n"):
        found = parsed(line + lines.read(), url).get(name)
        if not isinstance(found, list):
            raise Damaged(f"{url}: is damaged: has no list of {name}")
        yield from found
        return
    while not line.endswith(wanted):
        line = next((one for one in lines if one.startswith(b'],"')), b"")
        if not line:
            raise Damaged(f"{url}: is damaged: has no list of {name}")
    for line in lines:
        if line == b"]}\n":
            if lines.read(1):
                raise Damaged(f"{url}: is damaged: goes on after its end")
            return
        if line.startswith(b'],"'):
            return
        yield parsed(line.rstrip(b",\n"), url)
    raise Damaged(f"{url}: is damaged: its end is missing")


def items_of(store: Store, key: str, name: str) -> Iterator[Any]:
    """The items of the list `name` of a stored object, which is never whole in memory. Raises FileNotFoundError,
    `Damaged`.
    """
    with store.open(key) as file:
        yield from lines_of(file, name, store.url(key))


def digest_of(store: Store, key: str) -> str:
    """The SHA-256 of a stored object, in hex. Raises FileNotFoundError."""
    digest = hashlib.sha256()
    with store.open(key) as file:
        for block in blocks_of(file):
            digest.update(block)
    return digest.hexdigest()


def blocks_of(file: BinaryIO) -> Iterator[bytes]:
    """What is left of a file."""
    while block := file.read(BLOCK):
        yield block
