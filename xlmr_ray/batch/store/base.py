"""Object stores behind one small set of methods: a local folder, S3, or any other fsspec URL.

The commit protocol needs two operations that most file APIs lack: *create only if absent* and *replace only if
unchanged*. S3 has them as `If-None-Match: *` and `If-Match` (s3_store.py); a local folder has link(2), which refuses an
existing name, and a lock around compare-and-rename (local_store.py). Other stores reach us through fsspec, which
promises neither, so they are usable at-least-once only.

Keys are relative to the store's root, `/`-separated. A store pickles (it travels to Ray actors) and opens its
connection where it is used. Its repr, its errors and its logs carry no credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote

import fsspec

from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.printable import printable
from xlmr_ray.text.redact import carries_secret, clean_url, redacted

DEADLINE = 120.0  # seconds that one operation may go on retrying


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


def open_store(
    url: str, *, options: Mapping[str, object] | None = None, at_least_once: bool = False, deadline: float = DEADLINE
) -> Store:
    """Open the store at `url`: a path or `file://`, `s3://bucket/prefix`, or another fsspec URL. Sends no request.

    `options` are those of the URL's file system, s3fs's for S3 (`endpoint_url`, `key`, `secret`, `token`, `profile`,
    `anon`, `client_kwargs`, …). Without them the usual AWS variables and files hold; the endpoint is that of
    `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, read here so that it travels with a pickled store. `at_least_once`
    opens a store without conditional writes: two writers may then both believe that they created a key.
    """
    scheme = _scheme(url)
    if scheme == "s3" and carries_secret(url):
        raise UserError(f"{clean_url(url)}: keys do not belong in a URL; set AWS_ACCESS_KEY_ID, …, or a profile")
    if scheme == "file":
        from xlmr_ray.batch.store.local import LocalStore

        return LocalStore(_local_path(url), at_least_once)
    if scheme == "s3" and not at_least_once:
        from xlmr_ray.batch.store.s3 import S3Store  # here, so that a local run does not wait for botocore

        return S3Store(url, options=options, deadline=deadline)
    if scheme == "s3":
        from xlmr_ray.batch.store.s3 import checked_options

        options = checked_options(options)
    return FsspecStore(url, dict(options or {}), at_least_once)


def filesystem(url: str, *, options: Mapping[str, object] | None = None) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `url`, for reading input, and the path in it. No listing is cached; S3 is retried.

    Raises UserError for a URL that holds a password or a signature, and where the package for its scheme is missing.
    """
    if carries_secret(url):
        raise UserError(
            f"{clean_url(url)}: a user, password or signature in an input's URL would be written into the plan and "
            "beside every row; give it by the store's own variables or files"
        )
    return _filesystem(url, options)


def _filesystem(url: str, options: Mapping[str, object] | None) -> tuple[fsspec.AbstractFileSystem, str]:
    scheme = _scheme(url)
    if scheme == "file":
        return fsspec.filesystem("file"), _local_path(url)
    if scheme == "s3":
        from xlmr_ray.batch.store.s3 import s3_filesystem

        return s3_filesystem(options), url.split("://", 1)[1]
    if scheme not in fsspec.available_protocols():
        raise UserError(f"{clean_url(url)}: no file system for {scheme}:// is known")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise UserError(f"{clean_url(url)}: the package for {scheme}:// is not installed: {error}") from None
    try:
        return cast(
            tuple[fsspec.AbstractFileSystem, str],
            fsspec.core.url_to_fs(url, use_listings_cache=False, **dict(options or {})),
        )
    except Exception as error:  # credentials that are missing or wrong: each package has exceptions of its own
        reason = redacted(_first_line(error))
        raise UserError(f"{clean_url(url)}: {scheme}:// cannot be opened: {reason}") from None


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Tells a failure of an input's store, after its own retries, as one line: JobFailed. It is never taken for bad
    data.
    """
    try:
        yield
    except Exception as error:
        # botocore's own exceptions share no base with OSError, and importing botocore takes longer than most calls.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("botocore", "aiobotocore")):
            raise
        reason = redacted(_first_line(error))
        raise JobFailed(f"{what}: cannot be read: {reason}; run the job again to go on") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def etag_of(info: Mapping[str, Any]) -> str:
    """A string that changes when the object does, from a file system's `info`: the store's ETag, else size and times.

    For a local file it equals the etag that a store gives. Raises UserError where there is nothing to tell by.
    """
    for name in ("ETag", "etag", "md5Hash", "content_md5", "generation"):
        if value := info.get(name):
            return str(value).strip('"')
    if "ino" in info and "mtime" in info:
        return file_etag(info["size"], info["mtime"], info["ino"])
    times = [
        str(info[name]) for name in ("mtime", "LastModified", "last_modified", "updated", "created") if name in info
    ]
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


@dataclass(frozen=True)
class FsspecStore:
    """Any fsspec file system, at least once: `create` and `replace` look, then write; two writers can both win."""

    address: str = field(repr=False)
    options: Mapping[str, object] = field(repr=False)
    at_least_once: bool

    def create(self, key: str, data: bytes) -> str:
        if self.head(key) is not None:
            raise Exists(self.url(key))
        return self.put(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        found = self.head(key)
        if found is None or found.etag != etag:
            raise Changed(self.url(key))
        return self.put(key, data)

    def put(self, key: str, data: bytes) -> str:
        fs, root = self._filesystem()
        path = f"{root}/{key}"
        with self._told(key, "written"):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, data)
            return etag_of(fs.info(path))

    def get(self, key: str) -> tuple[bytes, str]:
        fs, root = self._filesystem()
        with self._told(key, "read"):
            etag = etag_of(fs.info(f"{root}/{key}"))
            return cast(bytes, fs.cat_file(f"{root}/{key}")), etag

    def head(self, key: str) -> Entry | None:
        fs, root = self._filesystem()
        try:
            with self._told(key, "read"):
                info = fs.info(f"{root}/{key}")
        except FileNotFoundError:
            return None
        return _entry(key, info) if info["type"] == "file" else None

    def list(self, prefix: str) -> Iterator[Entry]:
        fs, root = self._filesystem()
        with self._told(prefix, "listed"):
            found = fs.find(f"{root}/{prefix.rpartition('/')[0]}", detail=True)
        strip = len(fs._strip_protocol(root)) + 1
        for path in sorted(found):
            if path[strip:].startswith(prefix):
                yield _entry(path[strip:], found[path])

    def folders(self, prefix: str) -> Iterator[str]:
        fs, root = self._filesystem()
        try:
            with self._told(prefix, "listed"):
                found = fs.ls(f"{root}/{prefix}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return iter(())
        return iter(sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] != "file"))

    def open(self, key: str) -> BinaryIO:
        fs, root = self._filesystem()
        with self._told(key, "read"):
            return cast(BinaryIO, fs.open(f"{root}/{key}", "rb"))

    def delete(self, key: str) -> None:
        fs, root = self._filesystem()
        with contextlib.suppress(FileNotFoundError), self._told(key, "deleted"):
            fs.rm_file(f"{root}/{key}")

    @contextlib.contextmanager
    def _told(self, key: str, what: str) -> Iterator[None]:
        """The file system's failure in one line, by kind alone: its own text may hold the address with a password."""
        try:
            yield
        except FileNotFoundError:
            if what == "written":
                raise JobFailed(f"{self.url(key)}: cannot be written: the bucket or folder does not exist") from None
            raise FileNotFoundError(self.url(key)) from None
        except OSError as error:
            raise JobFailed(f"{self.url(key)}: cannot be {what} ({type(error).__name__})") from None

    def url(self, key: str) -> str:
        return f"{clean_url(self.address).rstrip('/')}/{key}"

    def probe(self) -> None:
        if not self.at_least_once:
            raise NoConditionalWrites(self.url(""))
        key = f"_probe-{secrets.token_hex(8)}"
        try:
            self.put(key, b"1")
        except JobFailed as error:
            raise UserError(str(error)) from None
        self.delete(key)

    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = _filesystem(self.address, self.options)
        return fs, root.rstrip("/")


def _entry(key: str, info: Mapping[str, Any]) -> Entry:
    changed = next(
        (info[name] for name in ("mtime", "LastModified", "last_modified", "updated", "created") if name in info), 0
    )
    return Entry(
        key,
        int(info["size"] or 0),
        etag_of(info),
        changed.timestamp() if hasattr(changed, "timestamp") else float(changed),
    )


def _scheme(url: str) -> str:
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    return {"local": "file", "s3a": "s3", "s3n": "s3"}.get(scheme, scheme)


def place(url: str) -> tuple[str, str]:
    """The scheme of a URL or path (`file`, `s3`, …), and where in it, without a slash at the end: to compare two."""
    scheme = _scheme(url)
    return scheme, (_local_path(url) if scheme == "file" else url.split("://", 1)[1]).rstrip("/")


def _local_path(url: str) -> str:
    path = unquote(url.split("://", 1)[1]) if "://" in url else url
    if (shown := printable(path)) != path:
        raise UserError(f"{shown}: the name is not UTF-8; rename it (convmv -f latin1 -t utf8)")
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:
        user = path.partition("/")[0]
        raise UserError(f"{path}: no user {user[1:]} here; write ./{path} for a folder of that name") from None


def _short_hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]
