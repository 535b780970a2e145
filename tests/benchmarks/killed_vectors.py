"""`python -m tests.benchmarks.killed_vectors TEXTS.parquet`: a job that gives dense, sparse and multiple vectors for
1,600 texts is killed twice, and its rows are a clean run's; FAISS and Lance find in them what exact search finds.

The model is bge-m3 made small, with random weights (`tests/tasks/m3.py`).
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

import xlmr_ray
from tests.tasks.m3 import save_m3

TEXTS, QUERIES, NEAREST = 1600, 200, 10
KILLED_AT = (0.25, 0.6)  # of the shards


def launched(job: Path) -> subprocess.Popen[bytes]:
    """A launch with its own group of processes."""
    return subprocess.Popen([sys.executable, "-m", "xlmr_ray", "run", str(job), "--quiet"], start_new_session=True)


def killed(job: Path, out: Path, shards: int) -> None:
    """A launch whose driver and actors are killed once so many shards are committed."""
    process = launched(job)
    while len(list(out.glob("_runs/*/shards/*"))) < shards:
        if process.poll() is not None:
            raise SystemExit(f"the job ended with {process.returncode} before it was killed")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    print(f"killed with {len(list(out.glob('_runs/*/shards/*')))} shards committed", flush=True)


def rows_of(out: Path) -> pa.Table:
    return (
        ds.dataset(xlmr_ray.result_files(str(out))).to_table().sort_by([("source", "ascending"), ("row", "ascending")])
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        texts = pq.read_table(sys.argv[1], columns=["text"]).slice(0, TEXTS)
        pq.write_table(texts, root / "texts.parquet")
        job = {
            "model": str(save_m3(root, max_length=512)),
            "input": {"path": str(root / "texts.parquet"), "text": "text"},
            "tasks": ["embedding", "sparse", "multi-vector"],
        }
        for out in ("clean", "killed"):
            (root / f"{out}.yaml").write_text(yaml.safe_dump({**job, "output": {"path": str(root / out)}}))
        if launched(root / "clean.yaml").wait():
            raise SystemExit("the clean run failed")
        shards = len(list(root.glob("clean/_runs/*/shards/*")))
        for part in KILLED_AT:
            killed(root / "killed.yaml", root / "killed", round(part * shards))
        if launched(root / "killed.yaml").wait():
            raise SystemExit("the killed job could not be ended")
        rows = rows_of(root / "killed")
        assert rows.equals(rows_of(root / "clean"))
        print(f"{len(rows)} rows in {shards} shards, equal a clean run's", flush=True)
        search(root, rows)


def search(root: Path, rows: pa.Table) -> None:
    column = rows["embedding_embedding"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(rows), -1)
    every = np.linspace(0, len(rows) - 1, QUERIES).round().astype(int)
    scores = vectors[every].astype(np.float64) @ vectors.T.astype(np.float64)
    tenth = np.sort(scores, axis=1)[:, -NEAREST]
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    _, found = index.search(vectors[every], NEAREST)
    lance.write_dataset(rows.select(["row", "embedding_embedding"]), str(root / "vectors.lance"))
    table = lance.dataset(str(root / "vectors.lance"))
    place = {row: index for index, row in enumerate(rows["row"].to_pylist())}
    for name, places in (("FAISS", found), ("Lance", [nearest(table, one, place) for one in vectors[every]])):
        # Texts that are the same have equal scores: which of these are among the nearest is nobody's to say.
        worst = np.take_along_axis(scores, np.asarray(places), axis=1).min(axis=1)
        missed = float((tenth - worst).max())
        print(f"{name}: the {NEAREST} nearest of {QUERIES}: below exact search's by {missed:.1e} at most", flush=True)
        assert missed < 1e-6


def nearest(table: lance.LanceDataset, query: np.ndarray, place: dict[int, int]) -> list[int]:
    wanted = {"column": "embedding_embedding", "q": query, "k": NEAREST, "metric": "cosine"}
    return [place[row] for row in table.to_table(columns=["row"], nearest=wanted)["row"].to_pylist()]


if __name__ == "__main__":
    main()
