"""What a job reads: bytes and requests at the store for one row group of a Parquet file, one `.jsonl.gz` and one
`.jsonl`, planned and then read as the tokenizers read it, shard after shard, with nothing computed. The store is
SeaweedFS behind a proxy that counts. `--apart`: each shard by itself, as it costs where neighbours are not read on.
usage: python -m tests.benchmarks.reading [--rows 1000 10000 100000] [--shard-rows 16] [--tokenizers 1] [--apart]
"""

import argparse
import gzip
import io
import json
import os
import random
import time
from collections.abc import Iterator
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faulty_proxy import FaultyProxy, running_proxy
from tests.seaweed import SeaweedFS, running_seaweed
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.read_shard import read_shard
from xlmr_ray.batch.input.readers.raw import Source
from xlmr_ray.batch.input.shard import Shard
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.stages.packs import ends, packs_for, unpacked
from xlmr_ray.batch.stages.recipe import shard_from_json
from xlmr_ray.batch.store.open import open_store

COLUMNS = Columns({"text": "text"}, id="id")
WORDS = [random.Random(at).randbytes(4).hex()[: 3 + at % 6] for at in range(20_000)]


def contents(rows: int) -> Iterator[tuple[str, bytes]]:
    """A name and a file of each kind, of pages of about 600 characters."""
    chance = random.Random(rows)
    texts = [" ".join(chance.choices(WORDS, k=100)) for _ in range(rows)]
    ids = [f"page-{at}" for at in range(rows)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ids, "text": texts}), sink, row_group_size=rows)
    yield "a.parquet", sink.getvalue()
    lines = (json.dumps({"id": id, "text": text}) for id, text in zip(ids, texts, strict=True))
    data = "".join(f"{line}\n" for line in lines).encode()
    yield "a.jsonl.gz", gzip.compress(data, 6)
    yield "a.jsonl", data


def read(shards: list[Shard], tokenizers: int, apart: bool) -> None:
    if apart:
        for shard in shards:
            read_shard(shard, COLUMNS)
        return
    for pack in packs_for(shards, len(shards), tokenizers):
        source: Source | None = None
        of_pack = [shard_from_json(text) for text in unpacked(pack)]
        for shard, until in zip(of_pack, ends(of_pack), strict=True):
            source = source if source is not None and source.input == shard.input else Source(shard.input)
            source.until = until
            read_shard(shard, COLUMNS, source=source)


def measure(url: str, size: int, proxy: FaultyProxy, arguments: argparse.Namespace, rows: int) -> None:
    figures: list[str] = []
    proxy.clear()
    proxy.sent = 0
    total = 0.0
    shards: list[Shard] = []
    for step in ("plan", "read"):
        begin = time.perf_counter()
        if step == "plan":
            found = plan_shards(find_inputs(url).inputs, shard_rows=arguments.shard_rows, columns=COLUMNS)
            shards = [one for one in found if isinstance(one, Shard)]
        else:
            read(shards, arguments.tokenizers, arguments.apart)
        seconds = time.perf_counter() - begin
        total += proxy.sent / size
        figures.append(f"{proxy.sent / size:8.2f} {len(proxy.requests):8,} {seconds:7.1f}")
        proxy.clear()
        proxy.sent = 0
    name = url.rpartition("/")[2]
    print(f"{name:10} {rows:8,} {size:11,} {len(shards):7,} {' '.join(figures)} {total:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--tokenizers", type=int, default=1)
    parser.add_argument("--apart", action="store_true")
    arguments = parser.parse_args()
    step = f"{'times':>8} {'requests':>8} {'seconds':>7}"
    print(f"{'':38}  {'planned':24} {'read':25} {'in all':>8}")
    print(f"{'file':10} {'rows':>8} {'bytes':>11} {'shards':>7} {step} {step} {'times':>8}")
    with running_seaweed() as server, running_proxy(server.endpoint) as proxy:
        through = SeaweedFS(proxy.endpoint)
        with mock.patch.dict(os.environ, through.environment):
            for rows in arguments.rows:
                folder = server.new_folder()
                store = open_store(folder, options=server.options)
                for name, data in contents(rows):
                    store.put(name, data)
                    measure(f"{folder}/{name}", len(data), proxy, arguments, rows)


if __name__ == "__main__":
    main()
