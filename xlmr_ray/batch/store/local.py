"""A local folder as a store: names are taken in one step, by link(2) or rename(2), and survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import BinaryIO

from xlmr_ray.batch.store.base import Changed, Entry, Exists, NoConditionalWrites, copy_data, file_etag, probe_writes
from xlmr_ray.errors import JobFailed, UserError

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EXDEV}


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or a shared one (NFS) whose `link` and locks work across its machines.

    Every write goes to `.tmp/`, is flushed to the disk, and takes its name in one step, so no reader sees half a file.
    `at_least_once` is for mounts without links or locks (FUSE, SMB): `create` and `replace` look, then write.
    """

    root: str
    at_least_once: bool = False

    def create(self, key: str, data: bytes) -> str:
        return self._create(key, data)

    def create_file(self, key: str, file: BinaryIO) -> str:
        return self._create(key, file)

    def _create(self, key: str, data: bytes | BinaryIO) -> str:
        path = self._path(key)
        with _disk(path, "written"), self._temporary(data) as temporary:
            _make_folder(path.parent)
            if self.at_least_once:
                if path.exists():
                    raise Exists(str(path))
                temporary.replace(path)
                return _etag_of_stat(path.stat())
            try:
                os.link(temporary, path)
            except FileExistsError:
                # over NFS the answer to a link that was made can be lost; a second name on our file says it was
                if temporary.stat().st_nlink < 2:
                    raise Exists(str(path)) from None
            _flush_folder(path.parent)
            return _etag_of_stat(temporary.stat())

    def replace(self, key: str, data: bytes, etag: str) -> str:
        path = self._path(key)
        with _disk(path, "written"), self._temporary(data) as temporary, self._lock():
            found = self.head(key)
            if found is None or found.etag != etag:
                raise Changed(str(path))
            # two replacements within one tick of the clock could get the same inode back and so the same etag
            later = max(time.time_ns(), int(found.modified * 1e9) + 2000)
            os.utime(temporary, ns=(later, later))
            temporary.replace(path)
            _flush_folder(path.parent)
            return _etag_of_stat(path.stat())

    def put(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with _disk(path, "written"), self._temporary(data) as temporary:
            _make_folder(path.parent)
            etag = _etag_of_stat(temporary.stat())
            temporary.replace(path)
            _flush_folder(path.parent)
            return etag

    def get(self, key: str) -> tuple[bytes, str]:
        path = self._name(key)
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                return file.read(), _etag_of_stat(os.fstat(file.fileno()))
        except OSError as error:
            raise _told(error, path, "read") from None

    def head(self, key: str) -> Entry | None:
        try:
            stat = os.stat(self._name(key))  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if S_ISDIR(stat.st_mode) else Entry(key, stat.st_size, _etag_of_stat(stat), stat.st_mtime)

    def list(self, prefix: str) -> Iterator[Entry]:
        found = map(self.head, self.keys(prefix))
        return (entry for entry in found if entry is not None)  # deleted since it was listed

    def keys(self, prefix: str) -> Iterator[str]:
        folder, slash, start = prefix.rpartition("/")
        return self._walk(folder + slash, start)

    def _walk(self, folder: str, start: str) -> Iterator[str]:
        for name in self._names(folder, start):
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
            else:
                yield folder + name

    def folders(self, prefix: str) -> Iterator[str]:
        return (name.rstrip("/") for name in self._names(prefix, "") if name.endswith("/"))

    def _names(self, folder: str, start: str) -> Sequence[str]:
        """Names in a folder, those of folders with a `/`, which is what makes the order that of the keys."""
        try:
            with os.scandir(self._path(folder)) as entries:
                found = [
                    entry.name + ("/" if entry.is_dir() else "")
                    for entry in entries
                    if entry.name.startswith(start) and (start or not entry.name.startswith("."))
                ]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        found.sort()
        return found

    def open(self, key: str) -> BinaryIO:
        with _disk(self._path(key), "read"):
            return self._path(key).open("rb")

    def delete(self, key: str) -> None:
        with _disk(self._path(key), "deleted"):
            self._path(key).unlink(missing_ok=True)

    def url(self, key: str) -> str:
        return str(self._path(key))

    def probe(self) -> None:
        try:
            if self.at_least_once:
                key = f"_probe-{secrets.token_hex(8)}"
                self.put(key, b"1")
                self.delete(key)
            else:
                probe_writes(self)
        except UserError:
            raise
        except (OSError, JobFailed) as error:
            code = error.errno if isinstance(error, OSError) else None
            if code in NO_LINKS:
                raise NoConditionalWrites(self.root) from None
            text = str(error) if code is None else f"{self.root}: cannot be written: {_os_reason(code)}"
            raise UserError(text) from None

    def check(self) -> None:
        root = Path(self.root).absolute()
        try:
            there = next(path for path in (root, *root.parents) if path.exists())
            code = errno.ENOTDIR if not there.is_dir() else 0 if os.access(there, os.W_OK | os.X_OK) else errno.EACCES
        except OSError as error:
            code = error.errno or 0
        if code:
            raise UserError(f"{self.root}: cannot be written: {_os_reason(code)}")

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        """The path as text: to make a `Path` of it takes as long as to read a small file."""
        if key.startswith("/") or (".." in key and ".." in key.split("/")):
            raise UserError(f"{key}: is outside the store {self.root}")
        return os.path.join(self.root, key)  # noqa: PTH118

    @contextlib.contextmanager
    def _temporary(self, data: bytes | BinaryIO) -> Iterator[Path]:
        path = Path(self.root, ".tmp", secrets.token_hex(8))
        _make_folder(path.parent)
        try:
            with path.open("xb") as file:
                copy_data(data, file)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if self.at_least_once:
            yield
            return
        with Path(self.root, ".tmp", "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
            yield


def _os_reason(code: int) -> str:
    return "a file is where a folder should be" if code in (errno.EEXIST, errno.ENOTDIR) else os.strerror(code)


@contextlib.contextmanager
def _disk(path: Path, what: str) -> Iterator[None]:
    """Says what the file system refused."""
    try:
        yield
    except OSError as error:
        raise _told(error, path, what) from None


def _told(error: OSError, path: str | Path, what: str) -> Exception:
    """The same in one line, where it is nobody's programming error."""
    if error.errno == errno.ENOTDIR:
        return UserError(f"{path}: cannot be {what}: a file is where a folder should be")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = "the disk is full; free some space and start the job again, it resumes"
    elif error.errno in (errno.EACCES, errno.EROFS, errno.EIO):
        reason = os.strerror(error.errno)
    else:
        return error
    return JobFailed(f"{path}: cannot be {what}: {reason}")


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.parent != path:
        _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _etag_of_stat(stat: os.stat_result) -> str:
    return file_etag(stat.st_size, stat.st_mtime, stat.st_ino)
