"""What a run's driver costs beside its work: planning, resuming, feeding, finishing and looking after runs of many
shards, and the commit of one shard against the store's own PUTs.

The runs are in a local folder: a record a shard, and its files, which are a few files under many names. Each step runs
in a process of its own; its memory is the peak over what its imports take.
usage: python -m tests.benchmarks.bookkeeping [--shards 250000 500000 1000000] [--commits 10000]
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# In this order; where a number stands, so many of a thousand shards are committed by then.
STEPS: tuple[str | int, ...] = (
    "plan", "resume", "feed", 500, "resume", "status", 1000, "finish", "finish again", "verify", "status", "sweep",
    "report",
)  # fmt: skip
RUN = "0123456789abcdef"
PARTS = 1000  # shards of an input
ROWS = 16
ERRORS_EVERY = 100  # shards, of which one has an error row
NAMES = 30_000  # of one file at most; a file system has a limit


def memory(field: str) -> float:
    """MB of this process: VmHWM, the peak, or VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="*", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--step", nargs=3, metavar=("STEP", "SHARDS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, shards, folder = arguments.step
        print(json.dumps(step(name, int(shards), folder)))
        return
    print(f"{'step':12} {'shards':>10} {'done':>10} {'seconds':>9} {'of CPU':>9} {'peak MB':>9}")
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory(prefix="bookkeeping-") as folder:
            done = 0
            for name in STEPS:
                if isinstance(name, int):
                    make(folder, range(done, done := shards * name // 1000))
                    continue
                command = [sys.executable, "-m", "tests.benchmarks.bookkeeping", "--step", name, str(shards), folder]
                ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds, cpu, peak = json.loads(ended.stdout)
                print(f"{name:12} {shards:10,} {done:10,} {seconds:9.1f} {cpu:9.1f} {peak:9.0f}", flush=True)
    if arguments.commits:
        commits(arguments.commits)


def step(name: str, shards: int, folder: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU, and MB of memory at most over what was there before."""
    from rich.console import Console

    from xlmr_ray.batch import plan
    from xlmr_ray.batch.done import earlier
    from xlmr_ray.batch.input.columns import Columns
    from xlmr_ray.batch.input.file import InputFile
    from xlmr_ray.batch.input.shard import Shard
    from xlmr_ray.batch.ledger.manifest import finish, read_manifest
    from xlmr_ray.batch.ledger.status import status
    from xlmr_ray.batch.ledger.sweep import sweep
    from xlmr_ray.batch.ledger.verify import verify
    from xlmr_ray.batch.observe.report.gather import gather_report
    from xlmr_ray.batch.progress import Figures
    from xlmr_ray.batch.stages import packs
    from xlmr_ray.batch.store.local import LocalStore

    Console(file=io.StringIO()).print()
    store = LocalStore(folder)

    def listing(inputs: list[InputFile], **_: object) -> Iterator[Shard]:
        """Instead of reading a thousand files."""
        for number in range(shards):
            place, part = divmod(number, PARTS)
            start = part * ROWS
            yield Shard(f"{place:07d}-{part:06d}", inputs[place], start, ROWS, start, start + ROWS)

    def found() -> plan.Plan:
        made = plan.read_plan(store, RUN)
        assert made is not None
        return made

    def planned() -> int:
        plan.plan_shards = listing  # type: ignore[assignment]
        inputs = [
            InputFile(source_key(place), "parquet", "", 10**8 + place, f"{place:032x}")
            for place in range(-(-shards // PARTS))
        ]
        head = {"run_id": RUN, "job": "bookkeeping", "identity": {}}
        return len(plan.write_plan(store, head, inputs, Columns(text={"text": "text"}), shard_rows=ROWS).shards)

    def resumed() -> int:
        made = found()
        figures = Figures(made.rows, len(made.shards))
        count = earlier(store, made, figures).count
        assert (figures.rows_before, figures.errors_before) == (count * ROWS, -(-count // ERRORS_EVERY))
        return len(made.shards)

    def fed() -> int:
        blocks = list(packs.packed(found().shards, packs.PACK))
        return sum(1 for block in blocks for _ in packs.unpacked(block))

    def looked() -> int:
        (one,) = status(store, RUN)
        assert one.finished or one.rows_done == one.done * ROWS
        assert one.planned is not None
        return one.planned

    def verified() -> int:
        report = verify(store, RUN)
        assert report.ok, report.problems[:3]
        return report.shards

    def swept() -> int:
        assert sweep(store) == []
        manifest = read_manifest(store, RUN)
        assert manifest is not None
        return manifest.shards

    doing: dict[str, Callable[[], int]] = {
        "plan": planned,
        "resume": resumed,
        "feed": fed,
        "status": looked,
        "finish": lambda: finish(store, RUN, found().ids()).shards,
        "finish again": lambda: finish(store, RUN, found().ids()).shards,
        "verify": verified,
        "sweep": swept,
        "report": lambda: gather_report(store, RUN).shards,
    }
    before, start, used = memory("VmHWM"), time.perf_counter(), time.process_time()
    assert doing[name]() == shards
    return time.perf_counter() - start, time.process_time() - used, memory("VmHWM") - before


def source_key(place: int) -> str:
    return f"s3://corpus/crawl/part-{place:05d}.parquet"


def make(folder: str, shards: range) -> None:
    """Commits the shards in the folder as attempts would, without waiting for the disk, and copies their records as
    their driver would.
    """
    import pyarrow as pa

    from tests.batch.runs import errors_of, rows_of
    from xlmr_ray.batch.ledger.commit import to_parquet
    from xlmr_ray.batch.ledger.gathered import Gathered
    from xlmr_ray.batch.ledger.record import File, Record, Stats, record_key
    from xlmr_ray.batch.store.local import LocalStore

    tables: dict[str, pa.Table] = {"data": rows_of("shard", ROWS), "errors": errors_of("shard", 1)}
    tables["fewer"] = tables["data"].slice(1)
    contents = {name: to_parquet(table) for name, table in tables.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    root = Path(folder)
    copies = Gathered(LocalStore(folder), RUN)
    for kind in ("data", "errors"):
        (root / kind / RUN).mkdir(parents=True, exist_ok=True)
    (root / record_key(RUN, "x")).parent.mkdir(exist_ok=True)
    for at in shards:
        place, part = divmod(at, PARTS)
        shard, attempt, bad = f"{place:07d}-{part:06d}", f"{at:016x}", at % ERRORS_EVERY == 0
        files = []
        for kind, name in (("data", "fewer"), ("errors", "errors")) if bad else (("data", "data"),):
            source = root / ".tmp" / f"{name}-{at // NAMES}"
            if not source.exists():
                source.write_bytes(contents[name])
            key = f"{kind}/{RUN}/{shard}-{attempt}.parquet"
            os.link(source, root / key)
            files.append(File(key, len(contents[name]), digests[name], tables[name].num_rows))
        record = Record(
            run_id=RUN,
            shard=shard,
            attempt=attempt,
            files=tuple(files),
            rows_in=ROWS,
            rows_ok=ROWS - bad,
            rows_error=int(bad),
            source_key=source_key(place),
            source_etag=f"{place:032x}",
            committed_at=1_700_000_000.0 + at,
            stats=Stats(seconds=1.0, tokens=1000),
            errors=(("empty_text", 1),) if bad else (),
        )
        data = record.to_bytes()
        (root / record_key(RUN, shard)).write_bytes(data)
        copies.add(record, data)
    copies.write()


def commits(count: int) -> None:
    """Commits shards on a real S3 server, and writes two objects of the same sizes, in turns of a hundred."""
    from tests.batch.runs import errors_of, rows_of
    from tests.seaweed import running_seaweed
    from xlmr_ray.batch.ledger.commit import commit_shard
    from xlmr_ray.batch.ledger.record import new_attempt
    from xlmr_ray.batch.store.open import open_store

    rows, errors = rows_of("shard", ROWS), errors_of("shard", 0)
    seconds = [0.0, 0.0]
    with running_seaweed() as server:
        store = open_store(server.new_folder(), options=server.options)
        store.put("warm", b"")
        done = 0
        record, data = b"", b""
        while done < count:
            turn = range(done, min(count, done + 100))
            start = time.perf_counter()
            for number in turn:
                made, won = commit_shard(
                    store,
                    RUN,
                    f"{number:07d}-000000",
                    attempt=new_attempt(),
                    rows=rows,
                    errors=errors,
                    rows_in=ROWS,
                    source_key="s3://corpus/part.parquet",
                    source_etag="etag",
                )
                assert won
            seconds[0] += time.perf_counter() - start
            record, data = made.to_bytes(), store.get(made.files[0].key)[0]
            start = time.perf_counter()
            for number in turn:
                store.put(f"plain/{number}.parquet", data)
                store.put(f"plain/{number}.json", record)
            seconds[1] += time.perf_counter() - start
            done = turn.stop
        assert sum(1 for _ in store.list(f"_runs/{RUN}/shards/")) == count
    ours, puts = (1000 * one / count for one in seconds)
    print(
        f"{count:,} commits: {ours:.2f} ms a shard; two PUTs of {len(data):,} and {len(record):,} bytes: "
        f"{puts:.2f} ms; {ours / puts:.2f} times"
    )


if __name__ == "__main__":
    main()
