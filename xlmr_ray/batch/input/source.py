"""What the job reads: paths, folders and globs become a sorted list of files, each with its format, size and etag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import Compression, InputFile
from xlmr_ray.batch.input.listing import check_name, expand
from xlmr_ray.batch.input.overlap import NAME, check_apart
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.store.base import etag_of
from xlmr_ray.errors import UserError
from xlmr_ray.text.printable import printable

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_PARQUET: tuple[str, Compression] = ("parquet", "")


def endings() -> str:
    """The endings of all formats, for messages."""
    plain = [ending for reader in READERS.values() if not reader.compressed for ending in reader.endings]
    others = [ending for reader in READERS.values() if reader.compressed for ending in reader.endings]
    return f"{' '.join(plain)}; {' '.join(others)}, each also with .gz or .zst"


@dataclass(frozen=True, slots=True)
class FoundInputs:
    """The inputs, sorted by key, each once; `ignored` are files in folders whose endings name no (wanted) format."""

    inputs: list[InputFile]
    ignored: list[str]


def find_inputs(
    path: str | Sequence[str],
    *,
    format: str = "auto",
    options: Mapping[str, object] | None = None,
    output: str | None = None,
    version: int | None = None,
    columns: Columns | None = None,
) -> FoundInputs:
    """Files, folders (recursive), globs, or a list of them, on local disk, S3 or another fsspec store.

    In folders and globs, names that start with `.` or `_` (`_SUCCESS`, `_metadata`; not `_key=value`), and `.crc` files
    are skipped. Two paths to one file are one input. `format="auto"` goes by the ending. A given format is used for
    files whose ending says nothing; files whose ending says another format are ignored, unless they were named one by
    one. A table is read at its `version`, None for the newest, with the `columns` that it has then. `options` go to the
    file system. Raises UserError where a path is missing, holds nothing to read, or has an
    ending that says no format, and where the files that a run writes to `output` would be among the inputs.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if not paths:
        raise UserError("input.path: an empty list; name a file, a folder or a glob")
    if format not in ("auto", *READERS):
        raise UserError(f"input.format: {format!r} is no format; one of auto, {', '.join(READERS)}")
    if version is not None and len(paths) > 1:
        raise UserError("input.version: is that of one table, and input.path names several; name one")
    wanted = columns.wanted if columns else ()
    inputs: dict[str, InputFile] = {}  # by what is equal for two paths to one file
    ignored: set[str] = set()
    entered: set[str] = set()
    for one in paths:
        taken = 0
        for found in expand(one, options, entered=entered, version=version, wanted=wanted):
            kind = _PARQUET if found.format else _format_of(found.key, format, named=found.named)
            if kind is None:
                ignored.add(printable(found.key))
                continue
            check_name(found.key)
            taken += 1
            there = inputs.get(found.same)
            if there is None or (found.key != found.same, found.key) < (there.key != found.same, there.key):
                if found.info.get("size") is None:
                    raise UserError(f"{found.key}: its server does not say its length; copy it to a disk or bucket")
                size, etag = int(found.info["size"]), etag_of(found.info)
                inputs[found.same] = InputFile(found.key, *kind, size, etag, found.table, found.constants)
        if not taken and ignored:
            example = min(ignored)
            raise UserError(f"{one}: nothing to read in format {format}, for example {example}; looked for {endings()}")
        if not taken:
            raise UserError(f"{one}: no file to read there; looked for {endings()}")
    if output is not None and _format_of(NAME, format, named=False) is not None:
        check_apart(paths, output, entered=entered, keys=inputs)
    read = {found.key for found in inputs.values()}
    return FoundInputs(sorted(inputs.values(), key=lambda found: found.key), sorted(ignored - read))


def _format_of(key: str, format: str, *, named: bool) -> tuple[str, Compression] | None:
    """Format and compression of a file; None: not to be read. Raises UserError for a named file of unknown ending."""
    name = key.rpartition("/")[2].lower()
    stem = name
    compression: Compression = ""
    for ending, value in _COMPRESSIONS.items():
        if name.endswith(ending):
            stem, compression = name.removesuffix(ending), value
    by_ending = next((name for name, reader in READERS.items() if stem.endswith(reader.endings)), None)
    if by_ending and not READERS[by_ending].compressed:
        compression = ""  # as pandas names Parquet that is compressed inside
    if format == "auto":
        if by_ending is None and named:
            raise UserError(f"{key}: the ending says no format; set input.format, or use {endings()}")
        return None if by_ending is None else (by_ending, compression)
    if by_ending in READERS[format].related:
        return by_ending, compression
    if compression and not READERS[format].compressed:
        return (format, "") if named else None
    if by_ending not in (None, format) and not named:
        return None
    return format, compression
