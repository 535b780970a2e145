"""A file that a job reads, as it was found and planned, and whether it is still that one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from xlmr_ray.batch.store.base import etag_of
from xlmr_ray.errors import JobFailed

Compression = Literal["", "gzip", "zstd"]


class InputChanged(JobFailed):
    """An input object is not the one that was planned: it was replaced or deleted while the job ran."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read. `key` is what `source` says in output rows: the full URL, or a local file's absolute path."""

    key: str
    format: str  # the name of its reader
    compression: Compression
    size: int
    etag: str
    table: str = ""  # the table or repository of the hub whose file it is, as `URL@version`
    constants: str = ""  # columns of the table that are not in the file; see `constants_to_text`

    def line(self) -> dict[str, Any]:
        """As plans have it, and runs are named after: files of no table as before there were tables."""
        return {name: value for name, value in asdict(self).items() if name not in ("table", "constants") or value}


def check_unchanged(found: InputFile, info: Mapping[str, Any] | None) -> None:
    """Compare a fresh `info` of the object with the plan. Raises InputChanged; None says that the object is gone."""
    if info is None:
        raise InputChanged(f"{found.key}: deleted since the job was planned; start the job again to plan without it")
    if etag_of(info) != found.etag:
        raise InputChanged(
            f"{found.key}: changed since the job was planned (etag {found.etag}, now {etag_of(info)}); "
            "start the job again: a changed input is a new run"
        )
