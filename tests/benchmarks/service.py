"""The service under load from another process, against the engine alone in the same run.

    python -m tests.benchmarks.service --model e5 --input help.parquet

Prints one request at a time (p50 beside the engine's own for the same texts), rates at several numbers of clients with
p50 and p99, and what twice the load that it can bear does: how many were to come again, and what became of memory
and of those that were accepted. Runs `xlmr-ray serve` as a user would, on a Ray of its own.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import aiohttp
import psutil
import pyarrow.parquet as pq
import torch

from xlmr_ray import pipeline

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Load:
    """Seconds of each answer by status, over so many seconds."""

    seconds: float
    took: dict[int, list[float]]

    @property
    def rate(self) -> float:
        return len(self.took.get(200, [])) / self.seconds

    def centile(self, share: float, status: int = 200) -> float:
        ordered = sorted(self.took.get(status, [float("nan")]))
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def line(self) -> str:
        statuses = ", ".join(f"{len(took)} x {status}" for status, took in sorted(self.took.items()))
        return (
            f"{self.rate:6.1f} requests/s   p50 {1e3 * self.centile(0.5):7.1f} ms   "
            f"p99 {1e3 * self.centile(0.99):7.1f} ms   {statuses}"
        )


async def load(url: str, bodies: Sequence[Any], *, clients: int, seconds: float) -> Load:
    """Each client sends one body after the other."""
    took: dict[int, list[float]] = {}
    turn = itertools.cycle(bodies)
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.monotonic() < end:
            await timed(session, url, next(turn), took)

    began = time.monotonic()
    async with connections() as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return Load(time.monotonic() - began, took)


async def flood(url: str, bodies: Sequence[Any], *, rate: float, seconds: float) -> Load:
    """So many requests a second, whatever became of those before."""
    took: dict[int, list[float]] = {}
    turn = itertools.cycle(bodies)
    began = time.monotonic()
    async with connections() as session, asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(began + number / rate - time.monotonic())
            group.create_task(timed(session, url, next(turn), took))
    return Load(time.monotonic() - began, took)


def connections() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120))


async def timed(session: aiohttp.ClientSession, url: str, body: Any, took: dict[int, list[float]]) -> None:
    """One request; the seconds of its answer go to those of its status."""
    began = time.monotonic()
    async with session.post(url, json=body) as answer:
        await answer.read()
        took.setdefault(answer.status, []).append(time.monotonic() - began)


def engine_alone(model: str, texts: Sequence[str], threads: int) -> tuple[float, float]:
    """Texts a second in one call, and the median seconds of one alone, tokenizing included in both."""
    torch.set_num_threads(threads)
    embed = pipeline("embedding", model)
    embed(list(texts[:8]))
    began = time.perf_counter()
    embed(list(texts))
    rate = len(texts) / (time.perf_counter() - began)
    alone = []
    for text in texts:
        began = time.perf_counter()
        embed(text)
        alone.append(time.perf_counter() - began)
    return rate, statistics.median(alone)


@contextmanager
def serving(command: Sequence[str | Path], ready: str) -> Iterator[tuple[str, int]]:
    """A server that has said what matches `ready`: the match's first group, and its process. What it says goes to a
    file: one that nobody reads from would fill a pipe, and wait.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with NamedTemporaryFile("w+", suffix=".log") as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            while not (found := re.search(ready, Path(said.name).read_text(errors="replace"))):
                if server.poll() is not None:
                    raise SystemExit(Path(said.name).read_text(errors="replace"))
                time.sleep(0.2)
            yield found[1], server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(120)


@contextmanager
def our_service(model: str, replicas: int = 1) -> Iterator[tuple[str, int]]:
    """`xlmr-ray serve` for embeddings, as a user starts it: its address and process."""
    settings = {
        "models": [{"model": model, "tasks": ["embedding"]}],
        "http": {"port": 0},
        "replicas": {"min": replicas, "max": replicas},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(settings, file)
        file.flush()
        with serving([BIN / "xlmr-ray", "serve", file.name], r"(http://\S+) answers") as there:
            yield there


def replica_memory(parent: int) -> int:
    """Resident bytes of the service's replica."""
    family = psutil.Process(parent).children(recursive=True)
    return max((p.memory_info().rss for p in family if "Replica" in " ".join(p.cmdline())), default=0)


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of all benchmarks that ask a service for vectors of texts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:mini")
    parser.add_argument("--input", type=Path, required=True, help="a Parquet file with a column `text`")
    return parser


def texts_in(path: Path) -> list[str]:
    texts: list[str] = pq.read_table(path, columns=["text"])["text"].to_pylist()
    return texts


def spread(texts: Sequence[str], count: int) -> list[str]:
    """So many of them, from all parts."""
    return list(texts[:: max(1, len(texts) // count)][:count])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--overload", type=float, default=60.0, help="seconds of twice the load it can bear")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--replicas", type=int, default=1, help="that share the cores")
    options = parser.parse_args()
    texts = spread(texts_in(options.input), options.documents)

    rate, alone = engine_alone(options.model, texts, options.threads)
    print(f"engine alone          {rate:6.1f} texts/s      p50 {1e3 * alone:7.1f} ms   one at a time", flush=True)
    bodies = [{"inputs": text, "truncate": True} for text in texts]
    with our_service(options.model, options.replicas) as (address, process):
        url = f"{address}/embed"
        asyncio.run(load(url, bodies, clients=2, seconds=3))
        one = asyncio.run(load(url, bodies, clients=1, seconds=options.seconds))
        print(f"service,  1 client   {one.line()}")
        print(f"   p50 over the engine's own: {1e3 * (one.centile(0.5) - alone):.1f} ms", flush=True)
        for clients in (8, 64):
            many = asyncio.run(load(url, bodies, clients=clients, seconds=options.seconds))
            share = f"{many.rate / rate:.1%} of the engine's rate"
            print(f"service, {clients:2d} clients  {many.line()}   {share}", flush=True)
        if options.overload:
            memory = replica_memory(process)
            over = asyncio.run(flood(url, bodies, rate=2 * many.rate, seconds=options.overload))
            grown = replica_memory(process) - memory
            print(f"twice that load      {over.line()}   memory {grown / 2**20:+.0f} MiB")
            print(f"   429 after p50 {1e3 * over.centile(0.5, 429):.1f} ms, p99 {1e3 * over.centile(0.99, 429):.1f} ms")
            after = asyncio.run(load(url, bodies, clients=1, seconds=5))
            print(f"   one client right after: {after.line()}", flush=True)
            print(dict(Counter({status: len(took) for status, took in over.took.items()})))


if __name__ == "__main__":
    main()
