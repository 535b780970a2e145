"""The embedding job against the script that people write first: whole processes, from launch to published output, in
turn.

Same checkpoint, same documents, and the same vectors, which is checked; with --bfloat16 the script is in bfloat16, too.
Prints the ratio pair by pair: the machine's own speed is not the point.
usage: python -m tests.benchmarks.naive [--model FOLDER] [--input FILE.parquet] [--rounds N] [--int8] [--bfloat16]
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

from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.store.open import open_store
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


def run(work: Path, name: str, model: str, source: Path, *more: str) -> tuple[float, float, dict[str, np.ndarray]]:
    """Seconds of our run, seconds to its first shard's commit, and the vectors."""
    options = ["input.id=id", "tasks.0.pooling=mean", "tasks.0.normalize=true", *more]
    settings = [part for option in options for part in ("--set", option)]
    out = work / name
    began = time.time()
    took = timed(
        "xlmr_ray", "run", "embedding", "--model", model, "--input", str(source), "--output", str(out), *settings
    )
    store = open_store(str(out))
    published = current(store)
    assert published is not None
    first = min(record.committed_at for record in committed(store, published.run_id)) - began
    return took, first, vectors(out / "data" / published.run_id)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="a folder; default: the embedded checkpoint")
    parser.add_argument("--input", help="Parquet with id and text; default: the embedded corpus")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--int8", action="store_true", help="a run in int8, too; with --bfloat16 beside it")
    parser.add_argument("--bfloat16", action="store_true", help="both in bfloat16, too")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="bench-"))
    source = work / "input.parquet"
    parts = [arguments.input] if arguments.input else sorted(CORPUS.glob("*.parquet"))
    pq.write_table(pa.concat_tables(pq.read_table(part, columns=["id", "text"]) for part in parts), source)
    model = arguments.model or str(CORPUS.parent / "mini")
    documents = pq.read_metadata(source).num_rows
    kinds: dict[str, tuple[str, ...]] = {"float32": ()}
    if arguments.int8:
        half = ("engine.dtype=bfloat16",) if arguments.bfloat16 else ()
        kinds["int8"] = ("engine.quantization=int8", *half)
    if arguments.bfloat16:
        kinds["bfloat16"] = ("engine.dtype=bfloat16",)
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(arguments.rounds):
        ours = {kind: run(work, f"{kind}{turn}", model, source, *more) for kind, more in kinds.items()}
        theirs = {}
        for dtype in ("float32", *(["bfloat16"] if arguments.bfloat16 else [])):
            out = work / f"theirs-{dtype}{turn}"
            theirs[dtype] = timed("tests.benchmarks.naive_script", model, str(source), str(out), dtype), vectors(out)
        for kind, (fast, first, got) in ours.items():
            slow, wanted = theirs.get(kind, theirs["float32"])
            assert got.keys() == wanted.keys()
            difference = max(float(np.abs(got[key] - wanted[key]).max()) for key in wanted)
            assert difference < (1e-5 if kind == "float32" else 0.1), difference
            ratios[kind].append(slow / fast)
            print(
                f"round {turn}, {kind}: xlmr-ray {fast:.1f} s ({documents / fast:.2f} docs/s, first shard after "
                f"{first:.1f} s), naive script {slow:.1f} s ({documents / slow:.2f} docs/s), ratio {slow / fast:.2f}, "
                f"largest difference {difference:.1e}",
                flush=True,
            )
    for kind, found in ratios.items():
        spread = f"min {min(found):.2f}, max {max(found):.2f}"
        print(f"{documents} documents, {kind}: ratio median {statistics.median(found):.2f} ({spread})")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
