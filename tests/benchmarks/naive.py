"""The embedding job against the script that people write first: whole processes, from launch to published output, in
turn.

Same checkpoint, same documents, and the same vectors, which is checked. Prints the ratio pair by pair: the machine's
own speed is not the point. usage: python -m tests.benchmarks.naive [--model FOLDER] [--input FILE.parquet] [--rounds
N]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xlmr_ray.batch.finish import current
from xlmr_ray.batch.store import open_store
from xlmr_ray.demo import CORPUS


def timed(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def vectors(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder)
    column = table["embedding"].combine_chunks()
    flat = getattr(column, "storage", column).flatten().to_numpy(zero_copy_only=False)  # Ray writes a type of its own
    return dict(zip(table["id"].to_pylist(), flat.reshape(table.num_rows, -1), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a folder; default: the embedded checkpoint")
    parser.add_argument("--input", help="Parquet with id and text; default: the embedded corpus")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = work / "input.parquet"
    parts = [arguments.input] if arguments.input else sorted(CORPUS.glob("*.parquet"))
    pq.write_table(pa.concat_tables(pq.read_table(part, columns=["id", "text"]) for part in parts), source)
    model = arguments.model or str(CORPUS.parent / "mini")
    documents = pq.read_metadata(source).num_rows
    ratios = []
    for turn in range(arguments.rounds):
        ours, theirs = work / f"ours{turn}", work / f"theirs{turn}"
        options = ["--set", "input.id=id", "--set", "tasks.0.pooling=mean", "--set", "tasks.0.normalize=true"]
        fast = timed(
            "xlmr_ray", "run", "embedding", "--model", model, "--input", str(source), "--output", str(ours), *options
        )
        slow = timed("tests.benchmarks.naive_script", model, str(source), str(theirs))
        got, wanted = vectors(ours / "data" / current(open_store(str(ours))).run_id), vectors(theirs)
        difference = max(float(np.abs(got[key] - wanted[key]).max()) for key in wanted)
        assert got.keys() == wanted.keys()
        assert difference < 1e-5, difference
        ratios.append(slow / fast)
        print(
            f"round {turn}: xlmr-ray {fast:.1f} s ({documents / fast:.2f} docs/s), naive script {slow:.1f} s "
            f"({documents / slow:.2f} docs/s), ratio {slow / fast:.2f}, largest difference {difference:.1e}",
            flush=True,
        )
    spread = f"min {min(ratios):.2f}, max {max(ratios):.2f}"
    print(f"{documents} documents, ratio median {statistics.median(ratios):.2f} ({spread})")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
