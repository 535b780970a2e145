"""A job over a corpus with repeats, which computes each text once, and the same without what it keeps of other shards:
the whole command in turns, and whether the rows are equal.

    python -m tests.benchmarks.repeats --model e5 --input help.parquet [--texts 400] [--repeats 0.37] [--rounds 3]

The texts are drawn from the input, and so many of all rows are one of them again, in any order. Texts that are equal
within a shard are computed once in both.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.results import iter_files


def corpus(source: Path, to: Path, texts: int, repeats: float) -> None:
    chance = random.Random(5)
    once = chance.sample(pq.read_table(source, columns=["text"])["text"].to_pylist(), texts)
    rows = once + chance.choices(once, k=round(texts * repeats / (1 - repeats)))
    chance.shuffle(rows)
    pq.write_table(pa.table({"text": rows}), to)
    print(f"{len(rows)} rows, {1 - texts / len(rows):.1%} of them repeats", flush=True)


def rows_of(output: Path) -> pa.Table:
    files = iter_files(str(output), errors=False)
    return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).sort_by("row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", type=Path, required=True, help="Parquet with a column text")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--repeats", type=float, default=0.37)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus(options.input, folder / "in.parquet", options.texts, options.repeats)
        for round_ in range(options.rounds):
            seconds = {}
            for kept in ("0", "auto"):
                command = [sys.executable, "-m", "xlmr_ray", "run", "embedding", "--model", options.model]
                command += ["--input", folder / "in.parquet", "--output", folder / f"{kept}-{round_}"]
                began = time.monotonic()
                subprocess.run([*command, "--quiet", "--set", f"cluster.repeats_bytes={kept}"], check=True)
                seconds[kept] = time.monotonic() - began
            tables = [rows_of(folder / f"{kept}-{round_}") for kept in seconds]
            assert tables[0].equals(tables[1]), "the rows are others"
            ratios.append(seconds["0"] / seconds["auto"])
            print(f"without {seconds['0']:.1f} s, with {seconds['auto']:.1f} s: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f} times as fast; the rows are equal")


if __name__ == "__main__":
    main()
