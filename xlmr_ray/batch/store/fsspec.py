"""Any other file system that fsspec knows, as a store: at least once."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec

from xlmr_ray.batch.store.base import Entry, Exists, NoConditionalWrites, copy_data, etag_of, look_and_replace
from xlmr_ray.batch.store.filesystem import open_filesystem
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.redact import clean_url


@dataclass(frozen=True)
class FsspecStore:
    """Any fsspec file system, at least once: `create` and `replace` look, then write; two writers can both win."""

    address: str = field(repr=False)
    options: Mapping[str, object] = field(repr=False)
    at_least_once: bool

    def create(self, key: str, data: bytes) -> str:
        return self._create(key, data)

    def create_file(self, key: str, file: BinaryIO) -> str:
        return self._create(key, file)

    def _create(self, key: str, data: bytes | BinaryIO) -> str:
        # Between the look and the write another writer may come.
        if self.head(key) is not None:
            raise Exists(self.url(key))
        return self._put(key, data)

    def replace(self, key: str, data: bytes, etag: str) -> str:
        return look_and_replace(self, key, data, etag)

    def put(self, key: str, data: bytes) -> str:
        return self._put(key, data)

    def _put(self, key: str, data: bytes | BinaryIO) -> str:
        fs, root = self._filesystem()
        path = f"{root}/{key}"
        with self._told(key, "written"):
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            if isinstance(data, bytes):
                fs.pipe_file(path, data)
            else:
                with fs.open(path, "wb") as file:
                    copy_data(data, file)
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
        """The file system's failure in one line, by its kind: its own text may hold the address with a password."""
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

    def check(self) -> None:
        if not self.at_least_once:
            raise NoConditionalWrites(self.url(""))
        try:
            self.folders("_runs/")
        except JobFailed as error:
            raise UserError(str(error)) from None

    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, root = open_filesystem(self.address, self.options)
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
