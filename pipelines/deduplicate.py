"""Finds documents that say nearly the same: embeds a corpus, then looks for near neighbours on Ray.

    python pipelines/deduplicate.py [JOB.yaml] [--threshold 0.98] [--clusters N] [--output FOLDER]

Runs the job (default pipelines/embed.yaml), or goes on with it. Vectors are put into clusters (spherical k-means on a
sample), and compared with all others of their cluster, as SemDeDup does (Abbas et al. 2023): neighbours on two sides of
a border are missed, with one cluster none is. Of documents with a cosine of at least the threshold the first, by
source and row, stays; the output names the others: `source, row, duplicate_of_source, duplicate_of_row, similarity`.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.batch.cluster import connected
from xlmr_ray.batch.job import check_job, read_job
from xlmr_ray.batch.ledger.results import read_results
from xlmr_ray.batch.run import run_job

JOB = Path(__file__).parent / "embed.yaml"
SAMPLE = 50_000
CLUSTER_ROWS = 4_000  # compared with each other: 16 million products, 64 MB
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("duplicate_of_source", pa.string()),
        ("duplicate_of_row", pa.int64()),
        ("similarity", pa.float32()),
    ]
)


def vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """`(N, width)`, of length 1."""
    whole = column.combine_chunks()
    flat = getattr(whole, "storage", whole).flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    found: NDArray[np.float32] = flat.reshape(len(whole), -1)
    unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit


def centres(sample: NDArray[np.float32], count: int, rounds: int = 10) -> NDArray[np.float32]:
    """Directions `(count, width)` of spherical k-means, the same for the same sample."""
    generator = np.random.default_rng(7)
    found = sample[generator.choice(len(sample), count, replace=False)]
    for _ in range(rounds):
        nearest = (sample @ found.T).argmax(1)
        sums = np.zeros_like(found)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), found)
    return found


def duplicates(group: pa.Table, threshold: float) -> pa.Table:
    """The rows of a cluster that are near an earlier one that stays."""
    group = group.sort_by([("source", "ascending"), ("row", "ascending")])
    rows = vectors(group["embedding"])
    of = np.full(len(rows), -1)
    similarity = np.ones(len(rows), np.float32)
    for place in range(1, len(rows)):
        near = rows[:place] @ rows[place]
        near[of[:place] >= 0] = -1.0
        best = int(near.argmax())
        if near[best] >= threshold:
            of[place], similarity[place] = best, near[best]
    gone = np.flatnonzero(of >= 0)
    sources, numbers = group["source"].combine_chunks(), group["row"].combine_chunks()
    columns = [
        sources.take(pa.array(gone)),
        numbers.take(pa.array(gone)),
        sources.take(pa.array(of[gone])),
        numbers.take(pa.array(of[gone])),
        pa.array(similarity[gone]),
    ]
    return pa.table(columns, schema=SCHEMA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", nargs="?", type=Path, default=JOB)
    parser.add_argument("--threshold", type=float, default=0.98)
    parser.add_argument("--clusters", type=int, help=f"default: one for {CLUSTER_ROWS:,} documents")
    parser.add_argument("--output", default="demo-output/duplicates")
    args = parser.parse_args()
    job = check_job(read_job(args.job), str(args.job))
    with connected(job.cluster.address):
        run_job(job)
        rows = read_results(job.output.path).select_columns(["source", "row", "embedding"])
        total = rows.count()
        count = min(args.clusters or max(1, total // CLUSTER_ROWS), total)
        part = rows if total <= SAMPLE else rows.random_sample(SAMPLE / total, seed=7)
        sample = [vectors(batch["embedding"]) for batch in part.iter_batches(batch_format="pyarrow", batch_size=None)]
        middles = centres(np.concatenate(sample), count)

        def assign(table: pa.Table) -> pa.Table:
            return table.append_column("cluster", pa.array((vectors(table["embedding"]) @ middles.T).argmax(1)))

        found = (
            rows.map_batches(assign, batch_format="pyarrow")
            .groupby("cluster")
            .map_groups(duplicates, fn_args=(args.threshold,), batch_format="pyarrow")
            .materialize()
        )
        found.write_parquet(args.output, mode="overwrite")
        print(f"{found.count():,} of {total:,} documents are near an earlier one; they are named in {args.output}")


if __name__ == "__main__":
    main()
