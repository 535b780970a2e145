"""What the job reads: paths, folders and globs become a sorted list of files, each with its format, size and etag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from xlmr_ray.batch.store.base import etag_of, filesystem
from xlmr_ray.errors import JobFailed, UserError

Format = Literal["parquet", "jsonl", "csv", "tsv", "text"]
Compression = Literal["", "gzip", "zstd"]

_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
ENDINGS = ".parquet .pq; .jsonl .ndjson .json .csv .tsv .txt, each also with .gz or .zst"


class InputChanged(JobFailed):
    """An input object is not the one that was planned: it was replaced or deleted while the job ran."""


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read. `key` is what `source` says in output rows: the full URL, or a local file's absolute path."""

    key: str
    format: Format
    compression: Compression
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Found:
    """The inputs, sorted by key, each once; `ignored` are files in folders whose endings name no (wanted) format."""

    inputs: list[Input]
    ignored: list[str]


def find_inputs(
    path: str | Sequence[str], *, format: str = "auto", options: Mapping[str, object] | None = None
) -> Found:
    """Files, folders (recursive), globs, or a list of them, on local disk, S3 or another fsspec store.

    In folders and globs, names that start with `.` or `_` (`_SUCCESS`, `_metadata`; not `_key=value`), and `.crc` files
    are skipped. `format="auto"` goes by the ending. A given format is used for files whose ending says nothing; files
    whose ending says another format are ignored, unless they were named one by one. `options` go to the file system.
    Raises UserError where a path is missing, holds nothing to read, or has an ending that says no format.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise UserError("input.path: an empty list; name a file, a folder or a glob")
    if format not in ("auto", *_FORMATS.values()):
        raise UserError(f"input.format: {format!r} is no format; one of auto, parquet, jsonl, csv, tsv, text")
    inputs: dict[str, Input] = {}
    ignored: set[str] = set()
    for one in paths:
        taken = 0
        for key, info, named in _expand(one, options):
            kind = _kind(key, format, named=named)
            if kind is None:
                ignored.add(key)
                continue
            taken += 1
            inputs[key] = Input(key, *kind, size=int(info.get("size") or 0), etag=etag_of(info))
        if not taken and ignored:
            example = min(ignored)
            raise UserError(f"{one}: nothing to read in format {format}, for example {example}; looked for {ENDINGS}")
        if not taken:
            raise UserError(f"{one}: no file to read there; looked for {ENDINGS}")
    return Found(sorted(inputs.values(), key=lambda found: found.key), sorted(ignored - inputs.keys()))


def check_unchanged(found: Input, info: Mapping[str, Any] | None) -> None:
    """Compare a fresh `info` of the object with the plan. Raises InputChanged; None says that the object is gone."""
    if info is None:
        raise InputChanged(f"{found.key}: deleted since the job was planned; start the job again to plan without it")
    if etag_of(info) != found.etag:
        raise InputChanged(
            f"{found.key}: changed since the job was planned (etag {found.etag}, now {etag_of(info)}); "
            "start the job again: a changed input is a new run"
        )


def _expand(path: str, options: Mapping[str, object] | None) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Yields key, info, and whether the user named this very file."""
    fs, where = filesystem(path, options=options)
    try:
        info = fs.info(where)
    except FileNotFoundError:
        info = None
    if info is not None and info["type"] != "directory":
        yield _key(fs, info["name"]), info, True
        return
    if info is not None:
        yield from _walk(fs, where)
        return
    if not any(char in where for char in "*?["):
        raise UserError(f"{path}: no such file or folder")
    fixed = where[: min(where.find(char) for char in "*?[" if char in where)].rpartition("/")[0]
    matches = fs.glob(where, detail=True)
    if not matches:
        raise UserError(f"{path}: nothing matches this pattern")
    for name, found in matches.items():
        if _hidden(name[len(fixed) :]):
            continue
        if found["type"] == "directory":
            yield from _walk(fs, name)
        else:
            yield _key(fs, name), found, False


def _walk(fs: Any, folder: str) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    root = folder.rstrip("/")
    for name, found in fs.find(folder, detail=True).items():
        is_marker = name.endswith("/") or name.rstrip("/") == root  # an empty object that stands for a folder
        if found["type"] in ("file", "link") and not is_marker and not _hidden(name[len(root) :]):
            yield _key(fs, name), found, False


def _hidden(path: str) -> bool:
    parts = [part for part in path.split("/") if part]
    return path.endswith(".crc") or any(
        part.startswith(".") or (part.startswith("_") and "=" not in part) for part in parts
    )


def _key(fs: Any, name: str) -> str:
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return name if protocol in ("file", "local") else cast(str, fs.unstrip_protocol(name))


def _kind(key: str, format: str, *, named: bool) -> tuple[Format, Compression] | None:
    """Format and compression of a file; None: not to be read. Raises UserError for a named file of unknown ending."""
    name = key.rpartition("/")[2].lower()
    stem = name
    compression: Compression = ""
    for ending, value in _COMPRESSIONS.items():
        if name.endswith(ending):
            stem, compression = name.removesuffix(ending), value
    by_ending = next((value for ending, value in _FORMATS.items() if stem.endswith(ending)), None)
    if by_ending == "parquet" and compression:
        by_ending = None  # Parquet compresses inside; a whole file in gzip could not be read by ranges
    if format == "auto":
        if by_ending is None and named:
            raise UserError(f"{key}: the ending says no format; set input.format, or use {ENDINGS}")
        return None if by_ending is None else (by_ending, compression)
    wanted = cast(Format, format)
    if wanted == "csv" and by_ending == "tsv":
        wanted = "tsv"
    if wanted == "parquet" and compression:
        return None
    if by_ending not in (None, wanted) and not named:
        return None
    return wanted, compression
