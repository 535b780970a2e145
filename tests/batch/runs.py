"""A small run to commit, for the tests of the commit protocol."""

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.json_by_line import by_line
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, new_attempt, plan_key
from xlmr_ray.batch.store.base import Exists
from xlmr_ray.batch.store.open import open_store

RUN = "0123456789abcdef"


def rows_of(shard, count):
    return pa.table(
        {
            "source": [f"in/{shard}"] * count,
            "row": pa.array(range(count), pa.int64()),
            "label": [f"{shard}-{i}" for i in range(count)],
            "score": pa.array([i / 7 for i in range(count)], pa.float32()),
        },
        schema=pa.schema({"source": pa.string(), "row": pa.int64(), "label": pa.string(), "score": pa.float32()}),
    )


def errors_of(shard, count):
    return pa.table(
        {
            "source": [f"in/{shard}"] * count,
            "row": list(range(1000, 1000 + count)),
            "id": [""] * count,
            "code": ["empty_text"] * count,
            "message": ["the text is empty"] * count,
        },
        schema=ERROR_SCHEMA,
    )


def commit(store, shard, *, ok=2, bad=0, attempt=None, rows_in=None, stats=None, run=RUN):
    return commit_shard(
        store,
        run,
        shard,
        attempt=attempt or new_attempt(),
        rows=rows_of(shard, ok),
        errors=errors_of(shard, bad),
        rows_in=ok + bad if rows_in is None else rows_in,
        source_key=f"in/{shard}",
        source_etag="etag",
        stats=stats,
    )


def create_plan(store, run, content):
    """A plan of what a mapping says, whose `shards` are a list of objects with an `id` each; the run may have it
    already.
    """
    data = by_line(content, "shards", content["shards"])
    try:
        store.create(plan_key(run), data)
    except Exists:
        assert store.get(plan_key(run))[0] == data


def plan(store, count, *, run=RUN, **head):
    """A plan of `count` shards; returns their ids."""
    shards = [f"{i:05}" for i in range(count)]
    lines = [{"id": shard, "source": f"in/{shard}"} for shard in shards]
    create_plan(store, run, {"job": "test", **head, "shards": lines})
    return shards


def keys(store, prefix=""):
    return [entry.key for entry in store.list(prefix)]


def table_of(store, key):
    return pq.read_table(pa.BufferReader(store.get(key)[0]))


def commit_all(places, shards, start, pipe):
    """The body of a child process: commit all shards in each store, and send which of them it won."""
    won = []
    for url, options in places:
        store = open_store(url, options=options)
        start.wait(60)
        won += [commit(store, shard, ok=2, bad=1)[1] for shard in shards]
    pipe.send(won)
