"""A thousand requests that somebody waits for, without a batch and while one of ten thousand requests is computed.

    python -m tests.benchmarks.beside_a_batch --model e5 --input help.parquet

Prints p50 and p99 of both, the ratio of the latter, and how far the batch came meanwhile. Runs `xlmr-ray serve`.
"""

import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.benchmarks.service import BIN, Load, connections, parser_of, serving, spread, texts_in, timed

ENDPOINT = "/v1/embeddings"


async def one_by_one(url: str, bodies: Sequence[Any], count: int) -> Load:
    took: dict[int, list[float]] = {}
    turn = itertools.cycle(bodies)
    began = time.monotonic()
    async with connections() as session:
        for _ in range(count):
            await timed(session, url, next(turn), took)
    return Load(time.monotonic() - began, took)


def started(url: str, texts: Sequence[str], count: int) -> str:
    """The id of a batch of so many requests."""
    turn = itertools.cycle(texts)
    body = {"method": "POST", "url": ENDPOINT}
    lines = [
        json.dumps({"custom_id": str(n), **body, "body": {"input": next(turn), "truncate": True}}) for n in range(count)
    ]
    file = {"file": ("requests.jsonl", "\n".join(lines).encode())}
    with httpx.Client(base_url=url, timeout=300) as client:
        name = client.post("/v1/files", files=file, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": name, "endpoint": ENDPOINT, "completion_window": "24h"}
        return str(client.post("/v1/batches", json=asked).json()["id"])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=10_000)
    options = parser.parse_args()
    every = texts_in(options.input)
    bodies = [{"inputs": text, "truncate": True} for text in spread(every, 96)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "models": [{"model": options.model, "tasks": ["embedding"]}],
            "http": {"port": 0},
            "batches": {"folder": f"{folder}/batches"},
            "log": {"level": "warning"},
        }
        file = Path(folder, "serve.yaml")
        file.write_text(json.dumps(settings))
        with serving([BIN / "xlmr-ray", "serve", file], r"(http://\S+) answers") as (url, _):
            asyncio.run(one_by_one(f"{url}/embed", bodies, 50))
            plain = asyncio.run(one_by_one(f"{url}/embed", bodies, options.requests))
            print(f"without a batch  {plain.line()}", flush=True)
            name = started(url, every, options.batch)
            time.sleep(1)
            beside = asyncio.run(one_by_one(f"{url}/embed", bodies, options.requests))
            counts = httpx.get(f"{url}/v1/batches/{name}").json()["request_counts"]
            print(f"beside a batch   {beside.line()}   the batch: {counts}")
            print(f"p99: {beside.centile(0.99) / plain.centile(0.99):.2f} times")


if __name__ == "__main__":
    main()
