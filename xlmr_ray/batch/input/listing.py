"""The files under a path that a job names: one file, a folder with all that is below it, or a glob.

On disk, links are followed. A link to a file is another file, under the link's name, as in the cache of the Hugging
Face hub, where every file is a link; its size and etag are those of its target. A folder is entered once, however many
links lead to it, so a link to a folder above it ends there.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from xlmr_ray.batch.input.table_formats import METADATA, check_no_table, check_no_tables, check_not_inside
from xlmr_ray.batch.lake.at import FileAtVersion, files_at_version, format_at
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.store.filesystem import filesystem, scheme_of
from xlmr_ray.errors import UserError
from xlmr_ray.text.first_line import first_line
from xlmr_ray.text.printable import printable
from xlmr_ray.text.redact import redacted

PATTERN = "*?["


@dataclass(frozen=True, slots=True)
class Listed:
    """One file. `key`: its full URL, or its absolute path on this machine; `info`: what the file system says of it;
    `named`: the user named this very file. `same`: equal for two keys that are one file, such as `in/a` and
    `o/../in/a`, or two paths through a linked folder; the shortest such path is its own key. `format`, where
    it is known otherwise than by the name, `table` and `constants` are those of `InputFile`.
    """

    key: str
    info: Mapping[str, Any]
    named: bool
    same: str
    format: str = ""
    table: str = ""
    constants: str = ""


def expand(
    path: str,
    options: Mapping[str, object] | None = None,
    *,
    entered: set[str] | None = None,
    version: int | None = None,
    wanted: Sequence[str] = (),
) -> Iterator[Listed]:
    """The files of one path; of a table, those of a version. `entered` gets the real paths of the folders on disk that
    were read; `wanted` are the columns that are read of a table.

    Raises UserError where there is no such file or folder, or nothing matches the glob.
    """
    entered = set() if entered is None else entered
    if scheme_of(path) == "hf":
        from xlmr_ray.batch.store.hub import pinned

        try:
            url, repository = pinned(path, options)
        except (FileNotFoundError, ValueError, NotImplementedError) as error:
            raise UserError(f"{path}: {redacted(first_line(error))}") from None
        found = _expand(url, options, entered=entered, version=version, wanted=wanted)
        yield from (replace(one, table=one.table or repository) for one in found)
    else:
        yield from _expand(path, options, entered=entered, version=version, wanted=wanted)


def _expand(
    path: str, options: Mapping[str, object] | None, *, entered: set[str], version: int | None, wanted: Sequence[str]
) -> Iterator[Listed]:
    fs, where = filesystem(path, options=options)
    try:
        info = fs.info(where)
    except (FileNotFoundError, NotADirectoryError):
        info = None
    of_table = None if info is None or not _may_be_table(info) else format_at(fs, where)
    if of_table is not None:
        yield from in_order(
            partial(_table_file, path, options), files_at_version(of_table, path, version, wanted, options)
        )
        return
    if version is not None:
        raise UserError(f"input.version: {path} is no table, so it has no versions; leave it out")
    if info is not None and info["type"] != "directory":
        yield _listed(fs, info["name"], info, named=True)
        return
    if info is not None:
        check_not_inside(fs, where)
        yield from _walk(fs, where, entered)
        return
    if "?versionId=" in path:
        raise UserError(f"{path}: versions of an object are not read; name it without ?versionId=, or copy the version")
    if not is_pattern(where):
        raise UserError(f"{path}: no such file or folder")
    fixed = fixed_part(where)
    try:
        matches = _local_matches(fs, fixed, where) if is_local(fs) else fs.glob(where, detail=True).items()
    except ValueError as error:
        raise UserError(f"{path}: is not a pattern: {error}") from None
    if not is_local(fs) and fs.exists(f"{fixed}/_delta_log"):
        check_no_table(fixed, ["_delta_log"])
    check_not_inside(fs, fixed)
    found = False
    for name, one in matches:
        found = True
        if is_hidden(name[len(fixed) :]):
            continue
        if one["type"] == "directory":
            yield from _walk(fs, name, entered)
        else:
            yield _listed(fs, name, one, named=False)
    if not found:
        raise UserError(f"{path}: nothing matches this pattern")


def is_pattern(where: str) -> bool:
    return any(char in where for char in PATTERN)


def fixed_part(where: str) -> str:
    """The folder that a pattern starts from, without a slash at its end."""
    return where[: min(where.find(char) for char in PATTERN if char in where)].rpartition("/")[0]


def is_hidden(path: str) -> bool:
    """Whether a name in the path starts with `.` or `_` (not `_key=value`), or it is a checksum of Hadoop's."""
    parts = [part for part in path.split("/") if part]
    return path.endswith(".crc") or any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts
    )


def is_local(fs: Any) -> bool:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return protocol in ("file", "local")


def check_name(name: str) -> None:
    """Raises UserError for a name on disk that is not UTF-8, which no plan and no Parquet file could hold."""
    if (shown := printable(name)) != name:
        raise UserError(f"{shown}: the name is not UTF-8; rename it (convmv -f latin1 -t utf8)")


def _listed(fs: Any, name: str, info: Mapping[str, Any], *, named: bool) -> Listed:
    if not is_local(fs):
        key = cast(str, fs.unstrip_protocol(name))
        return Listed(key, info, named, key)
    folder, _, base = name.rpartition("/")
    return Listed(name, info, named, f"{os.path.realpath(folder or '/').rstrip('/')}/{base}")


def _may_be_table(info: Mapping[str, Any]) -> bool:
    """Whether a path is a folder, or a file of metadata, of which it is worth to ask for more."""
    return info["type"] == "directory" or str(info["name"]).endswith(METADATA)


def _table_file(table: str, options: Mapping[str, object] | None, part: FileAtVersion) -> Listed:
    fs, where = filesystem(part.url, options=options)
    try:
        found = _listed(fs, where, fs.info(where), named=True)
    except FileNotFoundError:
        raise UserError(
            f"{table}: {part.url}, a file of {part.table}, is not there any more; read a version whose files are kept"
        ) from None
    return replace(found, format="parquet", table=part.table, constants=part.constants)


def _walk(fs: Any, folder: str, entered: set[str]) -> Iterator[Listed]:
    if is_local(fs):
        yield from _walk_local(fs, folder, entered)
        return
    root = folder.rstrip("/")
    below = fs.find(folder, detail=True)
    check_no_tables(below)
    for name, found in below.items():
        is_marker = name.endswith("/") or name.rstrip("/") == root  # an empty object that stands for a folder
        if found["type"] in ("file", "link") and not is_marker and not is_hidden(name[len(root) :]):
            yield _listed(fs, name, found, named=False)


def _walk_local(fs: Any, folder: str, entered: set[str]) -> Iterator[Listed]:
    """Folders before links to folders, so that a folder that both lead to is entered under its own name."""
    here: set[str] = set()
    folders, links = deque([folder]), deque[str]()
    while folders or links:
        one = (folders or links).popleft()
        real = os.path.realpath(one)
        if real in here:
            continue
        here.add(real)
        entered.add(real)
        for entry in _entries(one):
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            elif (info := _file_info(fs, entry)) is not None:
                yield _listed(fs, entry.path, info, named=False)


def _local_matches(fs: Any, fixed: str, pattern: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parts = pattern[len(fixed) :].strip("/").split("/")
    root = fixed or "/"
    for entry in _glob(root, parts, (os.path.realpath(root),)):
        if entry.is_dir():
            yield entry.path, {"type": "directory"}
        elif (info := _file_info(fs, entry)) is not None:
            yield entry.path, info


def _glob(folder: str, parts: Sequence[str], above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """What matches `parts` in a folder; `above`: it and the folders that it was reached through, which `**` does not
    enter again.
    """
    first, *rest = parts
    if first == "**":
        if rest:
            yield from _glob(folder, rest, above)
        for entry in _entries(folder):
            if not rest and not entry.is_dir():
                yield entry
            elif entry.is_dir() and (real := os.path.realpath(entry.path)) not in above:
                yield from _glob(entry.path, parts, (*above, real))
        return
    for entry in _entries(folder):
        if not fnmatchcase(entry.name, first):
            continue
        if not rest:
            yield entry
        elif entry.is_dir():
            yield from _glob(entry.path, rest, (*above, os.path.realpath(entry.path)))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """By name, without hidden ones. Raises UserError where they are those of a table, PermissionError: a folder that
    cannot be listed is not an empty one.
    """
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda one: one.name)
    except (FileNotFoundError, NotADirectoryError):
        return []  # deleted since it was found
    check_no_table(folder, (one.name for one in entries))
    return [one for one in entries if not is_hidden(one.name)]


def _file_info(fs: Any, entry: os.DirEntry[str]) -> Mapping[str, Any] | None:
    """As the file system says it of the target; a link to nothing is there, as the plan will say. None: no file."""
    try:
        info: Mapping[str, Any] = fs.info(entry.path)
    except FileNotFoundError:
        if not entry.is_symlink():
            return None
        of_link = entry.stat(follow_symlinks=False)
        return {"type": "file", "size": 0, "mtime": of_link.st_mtime, "ino": of_link.st_ino}
    return info if stat.S_ISREG(int(info.get("mode", stat.S_IFREG))) else None
