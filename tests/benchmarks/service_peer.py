"""The service beside `infinity-emb` on a CPU: the same checkpoint, texts and protocol, one after the other in turns.

    python -m venv .venv-infinity
    .venv-infinity/bin/python -m pip install --requirement tests/benchmarks/infinity.txt
    python -m tests.benchmarks.service_peer --model e5 --input help.parquet --infinity .venv-infinity/bin/infinity_emb

Both are started as their users start them, each alone on the machine; their vectors are checked before anything is
timed. Prints each round at 1, 8 and 64 clients, and at last how many times as many requests a second ours answers.
"""

import argparse
import asyncio
import json
import socket
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from tests.benchmarks.service import load, our_service, serving, spread, texts_in
from xlmr_ray import XLMRobertaTokenizer

CLIENTS = (1, 8, 64)
NAME = "served"


@contextmanager
def infinity(program: Path, model: Path) -> Iterator[str]:
    """Its route of OpenAI's protocol."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    command = [program, "v2", "--model-id", str(model), "--served-model-name", NAME, "--device", "cpu", "--engine",
               "torch", "--no-model-warmup", "--host", "127.0.0.1", "--port", port]  # fmt: skip
    with serving(command, r"Uvicorn running on (http://\S+)") as (address, _):
        yield f"{address}/embeddings"


@contextmanager
def ours(model: Path) -> Iterator[str]:
    with our_service(str(model)) as (address, _):
        yield f"{address}/v1/embeddings"


def fitting(model: Path, texts: Sequence[str]) -> list[str]:
    """The texts, cut where they are longer than the model: one server would cut them, the other refuse."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(model)
    limit = tokenizer.model_max_length - 8
    offsets = tokenizer(list(texts), truncation=True, max_length=limit, return_offsets_mapping=True)["offset_mapping"]
    return [text[: max(end for _, end in spans)] for text, spans in zip(texts, offsets, strict=True)]


def vectors(url: str, bodies: Sequence[Any]) -> np.ndarray:
    out = []
    for body in bodies:
        request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urlopen(request, timeout=120) as answer:
            out.append(json.load(answer)["data"][0]["embedding"])
    found = np.array(out)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a folder of sentence-transformers' layout")
    parser.add_argument("--input", type=Path, required=True, help="a Parquet file with a column `text`")
    parser.add_argument("--infinity", type=Path, required=True, help="the program infinity_emb")
    parser.add_argument("--documents", type=int, default=96)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    texts = fitting(options.model, spread(texts_in(options.input), options.documents))
    wanted: np.ndarray | None = None
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        turns: dict[str, tuple[str, AbstractContextManager[str]]] = {
            "xlmr-ray": (options.model.name, ours(options.model)),
            "infinity": (NAME, infinity(options.infinity, options.model)),
        }
        for name, (model, server) in turns.items():
            bodies = [{"model": model, "input": text} for text in texts]
            with server as url:
                found = vectors(url, bodies[:8])
                wanted = found if wanted is None else wanted
                if (worst := float((found * wanted).sum(1).min())) < 0.9999:
                    raise SystemExit(f"{name}: its vectors are others: cosine {worst:.5f}")
                asyncio.run(load(url, bodies, clients=8, seconds=3))
                for clients in CLIENTS:
                    done = asyncio.run(load(url, bodies, clients=clients, seconds=options.seconds))
                    rates.setdefault((name, clients), []).append(done.rate)
                    print(f"{name:9s} {clients:3d} clients  {done.line()}", flush=True)
    for clients in CLIENTS:
        pairs = zip(rates["xlmr-ray", clients], rates["infinity", clients], strict=True)
        times = [our / its for our, its in pairs]
        print(f"{clients:3d} clients: {statistics.median(times):.2f} times as many requests/s (rounds: "
              f"{', '.join(f'{one:.2f}' for one in times)})")  # fmt: skip


if __name__ == "__main__":
    main()
