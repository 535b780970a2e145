"""What a shard costs: one record of it, from its first read to the driver. Each step fills in what it knows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from xlmr_ray.batch.ledger.record import Record, Stats

WHOLE_RECORD = "whole_record"


@dataclass(frozen=True)
class ShardCost:
    """What the shard's record says (`stats`), and what only the driver's metrics do: when it was read first, tokenized
    and encoded, in seconds since the epoch by the clocks of these machines; the seconds that it waited for a step; the
    requests to the store that were tried again.
    """

    began: float
    tokenized: float
    encoded: float = 0.0
    encoder_wait: float = 0.0
    writer_wait: float = 0.0
    retries: int = 0
    stats: Stats = field(default_factory=Stats)

    @property
    def tokenizer_seconds(self) -> float:
        return self.tokenized - self.began

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardCost":
        content = json.loads(text)
        return cls(**{**content, "stats": Stats(**content["stats"])})


@dataclass(frozen=True)
class Committed:
    """A shard that is committed: its record, that of another attempt where it was faster, and its cost. The driver has
    the record without the summary, which it need not understand, and the bytes of the whole one.
    """

    record: Record
    cost: ShardCost

    def to_row(self) -> pa.Table:
        """One row, as Ray Data carries it to the driver."""
        record = replace(self.record, stats=replace(self.record.stats, summary={}))
        whole = self.record.to_bytes()
        return pa.table({"record": [record.to_bytes()], WHOLE_RECORD: [whole], "cost": [self.cost.to_json()]})

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Committed":
        return cls(Record.from_bytes(row["record"], "a shard's record"), ShardCost.from_json(row["cost"]))
