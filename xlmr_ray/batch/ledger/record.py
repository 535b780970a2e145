"""Exactly once: a shard is done when its record exists, and a record can be created only once.

    _runs/<run_id>/plan.json              created once
    _runs/<run_id>/shards/<shard>.json    the commit point: which attempt won, its files, sizes, checksums, counts
    _runs/<run_id>/manifest.json          the committed files, once every shard has a record (manifest.py)
    data/<run_id>/<shard>-<attempt>.parquet
    errors/<run_id>/<shard>-<attempt>.parquet
    hashes/<run_id>/<shard>-<attempt>.parquet   where the job says `reuse` (stages/reuse.py)
    _current.json                         the published run (published.py)

Files are written before the record that names them, under a key that no other attempt uses. A crash leaves files
without a record, which nobody reads and `finish` or `sweep` removes; it never leaves a record without its files.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from xlmr_ray.batch.ledger.json_by_line import VERSION, Damaged, canonical, head_of, items_of, parsed
from xlmr_ray.batch.ledger.small_ids import Attempts
from xlmr_ray.batch.store.base import Store, keys_in
from xlmr_ray.errors import JobFailed

ERROR_SCHEMA = pa.schema(
    [
        pa.field(name, type, nullable=False)
        for name, type in (
            ("source", pa.string()),
            ("row", pa.int64()),
            ("id", pa.string()),
            ("code", pa.string()),
            ("message", pa.string()),
        )
    ]
)
HASHES = "hashes"
FOLDERS = ("data", "errors", HASHES)  # of the files of attempts
# Of the texts of a row of the output, 128 bits.
HASH_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("hash", pa.binary(16), nullable=False)])
GRACE = 24 * 3600.0  # seconds for which a file without a record may belong to an attempt that is still going on
ATTEMPT_FILE = re.compile(r"(?P<shard>.+)-(?P<attempt>[0-9a-f]{16})\.parquet")


@dataclass(frozen=True, slots=True)
class File:
    """A committed Parquet file: key in the store, bytes, SHA-256 in hex, rows."""

    key: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Stats:
    """What a shard cost and held: seconds from its first read to its commit; tokens through the encoder, those computed
    beyond them, those `repeated`, which were not computed as an equal sequence was; the seconds and floating point
    operations of that, where and by what; `summary`: `report.counts`; rows `reused`, out of the table before.
    """

    seconds: float = 0.0
    tokens: int = 0
    padded: int = 0
    engine_seconds: float = 0.0
    operations: float = 0.0
    host: str = ""
    device: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    repeated: int = 0
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The commit of one shard. `files` are the data file and, where rows failed, the error file, and, where the job
    says so, that of hashes.

    `errors` counts the error rows by code; `committed_at` is in seconds since the epoch, by the writer's clock.
    `rows_lost` are rows of the input that its one error row stands for beside itself: those of a file that cannot be
    read; `lost_estimated`: they were not counted.
    """

    run_id: str
    shard: str
    attempt: str
    files: tuple[File, ...]
    rows_in: int
    rows_ok: int
    rows_error: int
    source_key: str
    source_etag: str
    committed_at: float
    stats: Stats = field(default_factory=Stats)
    errors: tuple[tuple[str, int], ...] = ()
    rows_lost: int = 0
    lost_estimated: bool = False

    def to_bytes(self) -> bytes:
        content = {"version": VERSION, **asdict(self)}
        for name in ("rows_lost", "lost_estimated"):  # which records did not always have
            if not content[name]:
                del content[name]
        for name in ("repeated", "reused"):  # nor these
            if not content["stats"][name]:
                del content["stats"][name]
        return canonical({**content, "check": hashlib.sha256(canonical(content)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Record:
        """Raises `Damaged`, naming `url`."""
        content = parsed(data, url)
        check = content.pop("check", None)
        # As `to_bytes` spells it, the content is what is left without the check; another spelling is made canonical.
        if check != hashlib.sha256(data.replace(b',"check":"%b"' % str(check).encode(), b"", 1)).hexdigest() and (
            check != hashlib.sha256(canonical(content)).hexdigest()
        ):
            raise Damaged(f"{url}: is damaged: its checksum is wrong")
        version = content.pop("version")
        if version != VERSION:
            raise JobFailed(f"{url}: was written in format {version}, this version reads {VERSION}")
        files = tuple(File(**file) for file in content.pop("files"))
        stats = Stats(**content.pop("stats"))
        errors = tuple((code, count) for code, count in content.pop("errors"))
        return cls(files=files, stats=stats, errors=errors, **content)


def new_attempt() -> str:
    return secrets.token_hex(8)


def plan_key(run_id: str) -> str:
    return f"_runs/{run_id}/plan.json"


def record_key(run_id: str, shard: str) -> str:
    return f"_runs/{run_id}/shards/{shard}.json"


def plan_head(store: Store, run_id: str) -> dict[str, Any]:
    """What a run's plan says before its lists; reads the first line only. Raises FileNotFoundError, `Damaged`."""
    return head_of(store, plan_key(run_id))


def planned_shards(store: Store, run_id: str) -> Iterator[str]:
    """The ids of the plan's shards, in its order. Raises FileNotFoundError, `Damaged`."""
    key = plan_key(run_id)
    for shard in items_of(store, key, "shards"):
        if not isinstance(shard, dict) or not isinstance(shard.get("id"), str):
            raise Damaged(f"{store.url(key)}: is damaged: a shard has no id")
        yield shard["id"]


def read_record(store: Store, run_id: str, shard: str) -> Record | None:
    """The shard's record, None where it is not committed. Raises `Damaged`."""
    key = record_key(run_id, shard)
    try:
        data, _ = store.get(key)
    except FileNotFoundError:
        return None
    record = Record.from_bytes(data, store.url(key))
    if (record.run_id, record.shard) != (run_id, shard):
        raise Damaged(f"{store.url(key)}: is damaged: is the record of shard {record.shard} of run {record.run_id}")
    return record


def committed_shards(store: Store, run_id: str) -> Iterator[str]:
    """The ids of the shards that have a record, sorted, only from the listing: what a resumed run need not do."""
    start = len(record_key(run_id, "")) - len(".json")
    keys = keys_in(store, f"_runs/{run_id}/shards/")
    return (key[start : -len(".json")] for key in keys if key.endswith(".json"))


def committed_at(store: Store, run_id: str) -> Iterator[tuple[str, float]]:
    """The same, with the times of their commits by the store's clock, in seconds since the epoch."""
    start = len(record_key(run_id, "")) - len(".json")
    for entry in store.list(f"_runs/{run_id}/shards/"):
        if entry.key.endswith(".json"):
            yield entry.key[start : -len(".json")], entry.modified


def orphans(store: Store, run_id: str, attempts: Attempts) -> Iterator[str]:
    """Keys of files of attempts other than `attempts`."""
    keys = (key for folder in FOLDERS for key in keys_in(store, f"{folder}/{run_id}/"))
    return (key for key in keys if shard_of_orphan(key, attempts) is not None)


def shard_of_orphan(key: str, attempts: Attempts) -> str | None:
    """The shard of a file of another attempt than `attempts`; None for theirs, and for what is not ours by name."""
    name = ATTEMPT_FILE.fullmatch(key.rpartition("/")[2])
    return name["shard"] if name is not None and name["attempt"] not in attempts else None
