"""Work grows, cost does not: the same job over 1, 4 and 16 copies of the embedded corpus, and with 1, 2 and 4 encoders.

Prints for each run documents a second between the first shard's commit and the last one's, that of the first line as
1, and the peak of the driver's memory. Each run is a whole process on a Ray of its own, as a user's.
usage: python -m tests.benchmarks.growth [--copies 1,4,16] [--encoders 1,2,4]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.demo import CORPUS


def corpus(folder: Path, copies: int) -> Path:
    folder.mkdir()
    for copy in range(copies):
        for part in CORPUS.glob("*.parquet"):
            shutil.copy(part, folder / f"{copy}-{part.name}")
    return folder


def peak_of(process: subprocess.Popen[bytes]) -> int:
    """The most memory that the process itself had, in bytes, until it ended."""
    driver, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    return peak


def run(source: Path, out: Path, *settings: str) -> tuple[int, float, int]:
    """Documents, documents a second, the driver's peak in bytes."""
    command = [sys.executable, "-m", "xlmr_ray", "run", "text-classification", "--input", str(source)]
    command += ["--output", str(out)] + [part for setting in settings for part in ("--set", setting)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = peak_of(process)
    if process.wait():
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    store = open_store(str(out))
    published = current(store)
    assert published is not None
    records = sorted(committed(store, published.run_id), key=lambda record: record.committed_at)
    rest = sum(record.rows_in for record in records[1:])
    rate = rest / (records[-1].committed_at - records[0].committed_at)
    return sum(record.rows_in for record in records), rate, peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--copies", default="1,4,16")
    parser.add_argument("--encoders", default="1,2,4")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="growth-"))
    copies = [int(one) for one in arguments.copies.split(",") if one]
    cases = [(count, "auto") for count in copies]
    cases += [(copies[0], encoders) for encoders in arguments.encoders.split(",") if encoders]
    first = 0.0
    for place, (count, encoders) in enumerate(cases):
        source = corpus(work / f"in-{place}", count)
        documents, rate, peak = run(source, work / f"out-{place}", f"cluster.encoders={encoders}", "input.id=id")
        first = first or rate
        print(
            f"{documents:7,} documents, encoders {encoders}: {rate:6.1f} a second, {rate / first:.2f} of the first; "
            f"driver {peak / 2**20:,.0f} MiB",
            flush=True,
        )
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
