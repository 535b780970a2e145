"""Reads a table as a job does, and compares with what the format's own library reads."""

import json
from collections import Counter

from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.kept_types import KeptTypes
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.source import find_inputs


def columns_of(names, text="text"):
    return Columns({"text": text}, keep=tuple(name for name in names if name != text))


def tables_of(path, names, version=None):
    """The table of each shard."""
    columns = columns_of(names)
    inputs = find_inputs(str(path), version=version, columns=columns).inputs
    kept = KeptTypes(columns.extra)
    shards = list(plan_shards(inputs, shard_rows=2, columns=columns, kept=kept))
    return [read_shard(shard, columns, kept=kept.schema()) for shard in shards]


def read(path, names, version=None):
    return counted([row for table in tables_of(path, names, version) for row in table.select(names).to_pylist()])


def counted(rows):
    return Counter(json.dumps(row, sort_keys=True, default=str) for row in rows)
