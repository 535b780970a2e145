"""Object stores behind one small set of methods: a local folder, S3, or any other fsspec URL.

The commit protocol needs two operations that most file APIs lack: *create only if absent* and *replace only if
unchanged*. S3 has them as `If-None-Match: *` and `If-Match` (s3.py); a local folder has link(2), which refuses an
existing name, and a lock around compare-and-rename (local.py). Other stores are used through fsspec (fsspec.py), which
promises neither, so they are usable at-least-once only.

Keys are relative to the store's root, `/`-separated. A store pickles (it travels to Ray actors) and opens its
connection where it is used. Its repr, its errors and its logs carry no credentials.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from xlmr_ray.errors import UserError

BLOCK = 4 << 20  # bytes copied at a time
DEADLINE = 120.0  # seconds that one operation may go on retrying


@dataclass(frozen=True)
class Address:
    """Where a store is, and how it is opened: see `open_store`."""

    url: str
    options: Mapping[str, object] = field(repr=False)
    at_least_once: bool
    deadline: float


class Exists(Exception):
    """`create`: the key is taken by somebody else's bytes."""


class Changed(Exception):
    """`replace`: the object is no longer the one whose etag was given, or it is gone."""


class NoConditionalWrites(UserError):
    """The store cannot create a key only if it is absent, so exactly-once cannot be promised on it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    def __str__(self) -> str:
        return (
            f"{self.url}: this store has no conditional writes, so a row could be written twice; "
            "choose another output or accept that with --at-least-once"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One object: its key relative to the store's root, bytes, etag, and last change in seconds since the epoch."""

    key: str
    size: int
    etag: str
    modified: float


class Store(Protocol):
    """What the commit protocol asks of a store. A write is whole and durable when its call returns."""

    @property
    def at_least_once(self) -> bool:
        """Whether two writers may both believe that they created a key."""

    def create(self, key: str, data: bytes) -> str:
        """Write `data` if the key is absent and return its etag. Raises `Exists`."""

    def replace(self, key: str, data: bytes, etag: str) -> str:
        """Write `data` if the object still has `etag` and return the new etag. Raises `Changed`."""

    def put(self, key: str, data: bytes) -> str:
        """Write `data` whatever is there (for keys that nobody else writes) and return its etag."""

    def get(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and etag. Raises FileNotFoundError."""

    def head(self, key: str) -> Entry | None:
        """The object's entry, None where there is none."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """Objects whose key starts with `prefix`, a page at a time, sorted by key within a folder."""

    def folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders directly under `prefix` (which ends with `/`), sorted, without reading into them."""

    def open(self, key: str) -> BinaryIO:
        """The object for reading, seekable. Raises FileNotFoundError."""

    def delete(self, key: str) -> None:
        """Remove the object; nothing happens where there is none."""

    def url(self, key: str) -> str:
        """Where the object is, for people and for other readers."""

    def probe(self) -> None:
        """Check that the root is writable and conditional writes hold. Raises UserError, `NoConditionalWrites`."""

    def check(self) -> None:
        """The same as far as it can be seen without writing."""


class ListsKeys(Protocol):
    """A store that lists keys only in less time, as a folder does without a look at each file."""

    def keys(self, prefix: str) -> Iterator[str]:
        """Those of `list`, in its order."""


def keys_in(store: Store, prefix: str) -> Iterator[str]:
    """The keys of `list`."""
    quick: ListsKeys | None = store if hasattr(store, "keys") else None  # type: ignore[assignment]
    return (entry.key for entry in store.list(prefix)) if quick is None else quick.keys(prefix)


class CreatesFromFile(Protocol):
    """A store that can do this; others get what is large as bytes, too."""

    def create_file(self, key: str, file: BinaryIO) -> str:
        """`create` of all of a file, which is never whole in memory."""


def create_file(store: Store, key: str, file: BinaryIO) -> str:
    """`create` of a file at its start, with as little memory as the store allows."""
    if isinstance(file, io.BytesIO):
        return store.create(key, file.getvalue())
    large: CreatesFromFile | None = store if hasattr(store, "create_file") else None  # type: ignore[assignment]
    return store.create(key, file.read()) if large is None else large.create_file(key, file)


def copy_data(data: bytes | BinaryIO, target: BinaryIO) -> None:
    """Writes bytes, or all of a file, to another one."""
    if isinstance(data, bytes):
        target.write(data)
    else:
        data.seek(0)
        shutil.copyfileobj(data, target, BLOCK)


def look_and_replace(store: Store, key: str, data: bytes, etag: str) -> str:
    """`replace` of a store that has none, likewise."""
    found = store.head(key)
    if found is None or found.etag != etag:
        raise Changed(store.url(key))
    return store.put(key, data)


def etag_of(info: Mapping[str, Any]) -> str:
    """A string that changes when the object does, from a file system's `info`: the store's ETag, else size and times.

    For a local file it equals the etag that a store gives. Raises UserError where there is nothing to tell by.
    """
    for name in ("ETag", "etag", "md5Hash", "content_md5", "generation", "blob_id"):
        if value := info.get(name):
            return str(value).strip('"')
    if "ino" in info and "mtime" in info:
        return file_etag(info["size"], info["mtime"], info["ino"])
    names = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")
    times = [str(info[name]) for name in names if name in info]
    if not times:
        raise UserError(f"{info.get('name')}: its store tells neither an ETag nor a time, so a change would go unseen")
    return _short_hash(info.get("size"), *times)


def file_etag(size: int, modified: float, inode: int) -> str:
    """The etag of a local file, from its size, mtime in seconds and inode."""
    return _short_hash(size, repr(float(modified)), inode)


def probe_writes(store: Store) -> None:
    """Write, write again and replace a scratch object. Raises `NoConditionalWrites` where a condition was ignored."""
    key = f"_probe-{secrets.token_hex(8)}"
    store.create(key, b"1")
    try:
        try:
            store.create(key, b"2")
        except Exists:
            pass
        else:
            raise NoConditionalWrites(store.url(""))
        try:
            store.replace(key, b"3", "0" * 32)
        except Changed:
            pass
        else:
            raise NoConditionalWrites(store.url(""))
    finally:
        store.delete(key)


def _short_hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]
