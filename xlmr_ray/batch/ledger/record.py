"""Exactly once: a shard is done when its record exists, and a record can be created only once.

    _runs/<run_id>/plan.json              created once
    _runs/<run_id>/shards/<shard>.json    the commit point: which attempt won, its files, sizes, checksums, counts
    _runs/<run_id>/manifest.json          the committed files, once every shard has a record (finish.py)
    data/<run_id>/<shard>-<attempt>.parquet
    errors/<run_id>/<shard>-<attempt>.parquet
    _current.json                         the published run (finish.py)

Files are written before the record that names them, under a key that no other attempt uses. A crash leaves files
without a record, which nobody reads and `finish` or `sweep` removes; it never leaves a record without its files.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.store.base import Exists, Store
from xlmr_ray.errors import JobFailed

T = TypeVar("T")
R = TypeVar("R")

VERSION = 1
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
ROW_GROUP = 65536
REQUESTS = 16  # objects read at a time where many are
GRACE = 24 * 3600.0  # seconds for which a file without a record may belong to an attempt that is still going on
MAX_COMMIT = 3600.0  # seconds from a shard's first file to its record; well under GRACE
SHARD = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")
ATTEMPT_FILE = re.compile(r"(?P<shard>.+)-(?P<attempt>[0-9a-f]{16})\.parquet")


class Damaged(JobFailed):
    """An object of the run is not what was written: unreadable, or its checksum is wrong."""


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
    beyond them, the seconds and floating point operations of that, where and by what; `summary`: `report.counts`.
    """

    seconds: float = 0.0
    tokens: int = 0
    padded: int = 0
    engine_seconds: float = 0.0
    operations: float = 0.0
    host: str = ""
    device: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """The commit of one shard. `files` are the data file and, where rows failed, the error file.

    `errors` counts the error rows by code; `committed_at` is in seconds since the epoch, by the writer's clock.
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

    def to_bytes(self) -> bytes:
        content = {"version": VERSION, **asdict(self)}
        return canonical({**content, "check": hashlib.sha256(canonical(content)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Record:
        """Raises `Damaged`, naming `url`."""
        content = parsed(data, url)
        check = content.pop("check", None)
        if check != hashlib.sha256(canonical(content)).hexdigest():
            raise Damaged(f"{url}: is damaged: its checksum is wrong")
        version = content.pop("version")
        if version != VERSION:
            raise JobFailed(f"{url}: was written in format {version}, this version reads {VERSION}")
        files = tuple(File(**file) for file in content.pop("files"))
        stats = Stats(**content.pop("stats"))
        errors = tuple((code, count) for code, count in content.pop("errors"))
        return cls(files=files, stats=stats, errors=errors, **content)


def run_id(identity: Mapping[str, object]) -> str:
    """The run's name: 16 hex digits that change with anything in `identity`, which holds what decides the answers."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:16]


def new_attempt() -> str:
    return secrets.token_hex(8)


def canonical(content: object) -> bytes:
    """JSON with one spelling for equal content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def parsed(data: bytes, url: str) -> dict[str, Any]:
    """A JSON object. Raises `Damaged`, naming `url`."""
    try:
        content = json.loads(data)
    except ValueError:
        raise Damaged(f"{url}: is damaged: not JSON") from None
    if not isinstance(content, dict):
        raise Damaged(f"{url}: is damaged: not a JSON object")
    return content


def plan_key(run_id: str) -> str:
    return f"_runs/{run_id}/plan.json"


def record_key(run_id: str, shard: str) -> str:
    return f"_runs/{run_id}/shards/{shard}.json"


# The plan


def planned_shards(store: Store, run_id: str) -> Iterator[str]:
    """The ids of the plan's shards, in its order. Raises FileNotFoundError, `Damaged`."""
    key = plan_key(run_id)
    for shard in lines_of(store.get(key)[0], "shards", store.url(key)):
        if not isinstance(shard, dict) or not isinstance(shard.get("id"), str):
            raise Damaged(f"{store.url(key)}: is damaged: a shard has no id")
        yield shard["id"]


def by_line(head: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> bytes:
    """A JSON object whose last member is the list `name`, one item a line, so that it reads whole or by line."""
    return by_lines({key: value for key, value in head.items() if key != name}, {name: items})


def by_lines(head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]) -> bytes:
    """The same for several lists, in the order given; the head and the name of the first list are the first line."""
    out = io.BytesIO()
    for piece in pieces_of(head, lists):
        out.write(piece)
    return out.getvalue()


def pieces_of(head: Mapping[str, Any], lists: Mapping[str, Iterable[Mapping[str, Any]]]) -> Iterator[bytes]:
    """What `by_lines` joins, an item at a time."""
    start = canonical(head)[:-1]
    yield start + (b"," if len(start) > 1 else b"")
    before = b""
    for name, items in lists.items():
        yield before + json.dumps(name).encode() + b":["
        separator = b"\n"
        for item in items:
            yield separator + canonical(item)
            separator = b",\n"
        before = b"\n],"
    yield b"\n]}\n"


def first_of(line: bytes, url: str) -> dict[str, Any]:
    """The head of what `by_lines` wrote, from its first line. Raises `Damaged`."""
    if line.endswith(b'":[\n'):  # a list, an item a line, comes next
        line = line[: max(line.rfind(b',"'), 1)] + b"}"
    return parsed(line, url)


def lines_of(data: bytes, name: str, url: str) -> Iterator[Any]:
    """The items of the list `name` in what `by_line` wrote, one at a time; any other JSON object is read whole."""
    lines = io.BytesIO(data)
    line = lines.readline()
    wanted = json.dumps(name).encode() + b":[\n"
    if not line.endswith(b":[\n"):
        found = parsed(data, url).get(name)
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


# A shard


def commit_shard(
    store: Store,
    run_id: str,
    shard_id: str,
    *,
    attempt: str,
    rows: pa.Table,
    errors: pa.Table,
    rows_in: int,
    source_key: str,
    source_etag: str,
    stats: Stats | None = None,
) -> tuple[Record, bool]:
    """Write and commit a shard's rows and error rows. Returns its record, and whether this attempt is the one in it.

    `errors` has `ERROR_SCHEMA` and no nulls. `attempt` is a `new_attempt()`, used for this call only. Raises JobFailed
    where rows are missing or too many, and where the store fails; whatever was written then is an orphan.
    """
    if not SHARD.fullmatch(shard_id):
        raise ValueError(f"shard id {shard_id!r}: want letters, digits, '_', '.' and '-'")
    if rows.num_rows + errors.num_rows != rows_in:
        raise JobFailed(
            f"shard {shard_id} of {source_key}: {rows_in} rows in, but {rows.num_rows} out and {errors.num_rows} errors"
        )
    if errors.schema.names != ERROR_SCHEMA.names or any(column.null_count for column in errors.columns):
        raise ValueError(f"errors of shard {shard_id}: want the columns {ERROR_SCHEMA.names} without nulls")
    # a late attempt should leave nothing beside a finished run's files, not even for a moment
    if (winner := read_record(store, run_id, shard_id)) is not None:
        return winner, winner.attempt == attempt

    begun = time.monotonic()
    name = f"{run_id}/{shard_id}-{attempt}.parquet"
    # A file without columns would have another schema than all others, and no reader would take them together.
    files = [_write(store, f"data/{name}", rows)] if rows.num_columns else []
    if errors.num_rows:
        files.append(_write(store, f"errors/{name}", errors.cast(ERROR_SCHEMA)))
    record = Record(
        run_id=run_id,
        shard=shard_id,
        attempt=attempt,
        files=tuple(file for file, _ in files),
        rows_in=rows_in,
        rows_ok=rows.num_rows,
        rows_error=errors.num_rows,
        source_key=source_key,
        source_etag=source_etag,
        committed_at=round(time.time(), 3),
        stats=stats or Stats(),
        errors=tuple(sorted(Counter(errors.column("code").to_pylist()).items())),
    )
    intact = all(_is_there(store, file, etag) for file, etag in files)
    if intact and time.monotonic() - begun > MAX_COMMIT:
        raise JobFailed(
            f"shard {shard_id}: took over {MAX_COMMIT:.0f} s to write, so a sweep may have removed it; try again"
        )
    if intact:
        try:
            store.create(record_key(run_id, shard_id), record.to_bytes())
            return record, True
        except Exists:
            pass
    winner = read_record(store, run_id, shard_id)
    if winner is None:
        raise JobFailed(f"{store.url(files[0][0].key)}: is not what was written there a moment ago; try again")
    if winner.attempt == attempt:
        return winner, True
    for file, _ in files:
        store.delete(file.key)
    return winner, False


def to_parquet(table: pa.Table) -> bytes:
    """The table as one Parquet file, zstd; equal tables give equal bytes, however they are chunked."""
    sink = io.BytesIO()
    # text repeats and gains from a dictionary; scores and vectors do not, and the attempt costs time
    texts = [
        column.name
        for column in table.schema
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    pq.write_table(table.combine_chunks(), sink, compression="zstd", row_group_size=ROW_GROUP, use_dictionary=texts)
    return sink.getvalue()


def _write(store: Store, key: str, table: pa.Table) -> tuple[File, str]:
    # whole in memory, then one PUT: a Parquet file written as a stream can be left cut
    data = to_parquet(table)
    etag = store.put(key, data)
    return File(key, len(data), hashlib.sha256(data).hexdigest(), table.num_rows), etag


def _is_there(store: Store, file: File, etag: str) -> bool:
    """Whether the object has the size and etag that its PUT, which the store checked by digest, was answered with."""
    entry = store.head(file.key)
    return entry is not None and entry.size == file.bytes and entry.etag == etag


# Records


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
    """The ids of the shards that have a record, sorted, from the listing alone: what a resumed run need not do."""
    start = len(record_key(run_id, "")) - len(".json")
    for entry in store.list(f"_runs/{run_id}/shards/"):
        if entry.key.endswith(".json"):
            yield entry.key[start : -len(".json")]


def committed(store: Store, run_id: str) -> Iterator[Record]:
    """The run's records, sorted by shard, read a few at a time. Raises `Damaged`."""
    for record in in_order(lambda shard: read_record(store, run_id, shard), committed_shards(store, run_id)):
        if record is not None:
            yield record


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` with a few requests under way, in order, holding no more than those."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 2 * REQUESTS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
