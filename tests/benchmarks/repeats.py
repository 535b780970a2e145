"""A job over a corpus with repeats, of which each text is computed once, and one over the same rows without: a number
stands before each text, so that none is equal to another. The whole command, in turns.

    python -m tests.benchmarks.repeats --model e5 --input help.parquet [--texts 400] [--repeats 0.37] [--rounds 3]

The texts are drawn from the input, and so many of all rows are one of them again, none twice, in any order.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.ledger.results import iter_files


def corpora(source: Path, folder: Path, texts: int, repeats: float) -> list[str]:
    """Writes `repeats.parquet` and `none.parquet`. Returns the texts of the former."""
    chance = random.Random(5)
    once = chance.sample(pq.read_table(source, columns=["text"])["text"].to_pylist(), texts)
    rows = once + chance.sample(once, round(texts * repeats / (1 - repeats)))
    chance.shuffle(rows)
    pq.write_table(pa.table({"text": rows}), folder / "repeats.parquet")
    pq.write_table(pa.table({"text": [f"{n} {text}" for n, text in enumerate(rows)]}), folder / "none.parquet")
    print(f"{len(rows)} rows, {1 - texts / len(rows):.1%} of them repeats", flush=True)
    return rows


def check_rows(output: Path, texts: list[str]) -> None:
    """Equal texts have equal vectors, to the last bit, and others have others."""
    files = iter_files(str(output), errors=False)
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).sort_by("row")
    found: dict[str, set[bytes]] = {}
    for text, vector in zip(texts, table["embedding"].to_pylist(), strict=True):
        found.setdefault(text, set()).add(np.array(vector, np.float32).tobytes())
    assert all(len(vectors) == 1 for vectors in found.values())
    assert len(set.union(*found.values())) > 0.9 * len(found)  # of long ones only the beginnings count


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
        texts = corpora(options.input, folder, options.texts, options.repeats)
        for round_ in range(options.rounds):
            seconds = {}
            for kind in ("none", "repeats"):
                command = [sys.executable, "-m", "xlmr_ray", "run", "embedding", "--model", options.model, "--quiet"]
                command += ["--input", folder / f"{kind}.parquet", "--output", folder / f"{kind}-{round_}"]
                began = time.monotonic()
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
                seconds[kind] = time.monotonic() - began
            check_rows(folder / f"repeats-{round_}", texts)
            ratios.append(seconds["none"] / seconds["repeats"])
            print(f"without {seconds['none']:.1f} s, with {seconds['repeats']:.1f} s: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
