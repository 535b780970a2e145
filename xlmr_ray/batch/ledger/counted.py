"""What a run's manifest has of a shard: its numbers, which are added up, and its line."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

from xlmr_ray.batch.ledger.json_by_line import canonical
from xlmr_ray.batch.ledger.record import Record


class Counted(NamedTuple):
    """The record's numbers, and `line`, the shard in the manifest's list. `file_bytes` are those of its files."""

    shard: str
    attempt: str
    rows_in: int
    rows_ok: int
    rows_error: int
    rows_lost: int
    lost_estimated: bool
    tokens: int
    file_bytes: int
    committed_at: float
    line: bytes


def counted(record: Record) -> Counted:
    line = {
        "shard": record.shard,
        "attempt": record.attempt,
        "source_key": record.source_key,
        "source_etag": record.source_etag,
        "files": [asdict(file) for file in record.files],
    }
    return Counted(
        record.shard,
        record.attempt,
        record.rows_in,
        record.rows_ok,
        record.rows_error,
        record.rows_lost,
        record.lost_estimated,
        record.stats.tokens,
        sum(file.bytes for file in record.files),
        record.committed_at,
        canonical(line),
    )
