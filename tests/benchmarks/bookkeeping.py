"""What a run's driver costs beside its work: planning, resuming, feeding, finishing and verifying runs of many shards,
and the commit of one shard against the store's own PUTs.

The records and files of the large runs are made up as they are asked for, so that what is measured is the driver and
no disk. Each step runs in a process of its own; its memory is the peak over what its imports take.
usage: python -m tests.benchmarks.bookkeeping [--shards 250000 500000 1000000] [--commits 10000]
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEPS = ("plan", "resume none", "resume half", "feed", "finish", "verify")
RUN = "0123456789abcdef"
PARTS = 1000  # shards of an input
ROWS = 16
ERRORS_EVERY = 100  # shards, of which one has an error row


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
    print(f"{'step':12} {'shards':>10} {'seconds':>9} {'us a shard':>11} {'peak MB':>9} {'bytes a shard':>14}")
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory(prefix="bookkeeping-") as folder:
            for name in STEPS:
                command = [sys.executable, "-m", "tests.benchmarks.bookkeeping", "--step", name, str(shards), folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                seconds, peak = json.loads(done.stdout)
                print(
                    f"{name:12} {shards:10,} {seconds:9.1f} {1e6 * seconds / shards:11.1f} {peak:9.0f} "
                    f"{peak * 2**20 / shards:14.0f}",
                    flush=True,
                )
    if arguments.commits:
        commits(arguments.commits)


def step(name: str, shards: int, folder: str) -> tuple[float, float]:
    """Seconds, and MB of memory at most over what was there before. The plan is in the folder from the first step."""
    from rich.console import Console

    from xlmr_ray.batch import plan, run, stream
    from xlmr_ray.batch.input.columns import Columns
    from xlmr_ray.batch.input.file import Input
    from xlmr_ray.batch.input.shard import Shard
    from xlmr_ray.batch.ledger.manifest import finish
    from xlmr_ray.batch.ledger.verify import verify
    from xlmr_ray.batch.progress import Figures

    Console(file=io.StringIO()).print()
    done = {"plan": 0, "resume none": 0, "resume half": shards // 2}.get(name, shards)
    store: Any = synthetic(folder, done)

    def listing(inputs: list[Input], **_: object) -> Iterator[Shard]:
        """Instead of reading a thousand files."""
        for number in range(shards):
            place, part = divmod(number, PARTS)
            start = part * ROWS
            yield Shard(f"{place:07d}-{part:06d}", inputs[place], start, ROWS, start, start + ROWS)

    def planned() -> int:
        plan.plan_shards = listing  # type: ignore[assignment]
        inputs = [
            Input(source_key(place), "parquet", "", 10**8 + place, f"{place:032x}")
            for place in range(-(-shards // PARTS))
        ]
        head = {"run_id": RUN, "job": "bookkeeping", "identity": {}}
        return len(plan.write_plan(store, head, inputs, Columns(text={"text": "text"}), shard_rows=ROWS).shards)

    def resumed() -> int:
        found = plan.read_plan(store, RUN)
        assert found is not None
        figures = Figures(found.rows, len(found.shards))
        count = run.earlier(store, found, figures).count
        assert (count, figures.rows_before, figures.errors_before) == (done, done * ROWS, -(-done // ERRORS_EVERY))
        return len(found.shards)

    def fed() -> int:
        found = plan.read_plan(store, RUN)
        assert found is not None
        packs = list(stream.packed(found.shards, stream.PACK))
        return sum(1 for pack in packs for _ in stream.unpacked(pack))

    def finished() -> int:
        found = plan.read_plan(store, RUN)
        assert found is not None
        return finish(store, RUN, found.ids()).shards

    def verified() -> int:
        report = verify(store, RUN)
        assert report.ok, report.problems[:3]
        return report.shards

    doing: dict[str, Callable[[], int]] = {
        "plan": planned,
        "resume none": resumed,
        "resume half": resumed,
        "feed": fed,
        "finish": finished,
        "verify": verified,
    }
    before, start = memory("VmHWM"), time.perf_counter()
    assert doing[name]() == shards
    return time.perf_counter() - start, memory("VmHWM") - before


def source_key(place: int) -> str:
    return f"s3://corpus/crawl/part-{place:05d}.parquet"


def synthetic(folder: str, done: int) -> object:
    """A store in which the first `done` shards are committed: plan and manifest in a folder, all else made up."""
    import hashlib

    import pyarrow as pa

    from tests.batch.runs import errors_of, rows_of
    from xlmr_ray.batch.ledger.commit import to_parquet
    from xlmr_ray.batch.ledger.record import File, Record, Stats, record_key
    from xlmr_ray.batch.store.base import Entry
    from xlmr_ray.batch.store.local import LocalStore

    tables: dict[str, pa.Table] = {"data": rows_of("shard", ROWS), "errors": errors_of("shard", 1)}
    tables["fewer"] = tables["data"].slice(1)
    contents = {name: to_parquet(table) for name, table in tables.items()}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    prefix, suffix = record_key(RUN, ""), ".json"

    class Made(LocalStore):
        def list(self, prefix_: str) -> Iterator[Entry]:
            kind = prefix_.partition("/")[0]
            if prefix_ + suffix == prefix:
                names = (f"{prefix_}{name_of(at)}{suffix}" for at in range(done))
            elif kind == "data":
                names = (file_key(kind, at) for at in range(done))
            elif kind == "errors":
                names = (file_key(kind, at) for at in range(0, done, ERRORS_EVERY))
            else:
                yield from super().list(prefix_)
                return
            for name in names:
                yield Entry(name, 1000, "etag", 0.0)

        def get(self, key: str) -> tuple[bytes, str]:
            if not key.startswith(prefix[: -len(suffix)]):
                return super().get(key)
            place, _, part = key[len(prefix) - len(suffix) : -len(suffix)].partition("-")
            return record(int(place) * PARTS + int(part)).to_bytes(), "etag"

        def open(self, key: str) -> Any:
            kind = key.partition("/")[0]
            if kind not in ("data", "errors"):
                return super().open(key)
            number = int(key.rpartition("-")[2].partition(".")[0], 16)
            return io.BytesIO(contents[content_of(kind, number)])

        def delete(self, key: str) -> None:
            raise AssertionError(f"nothing is to be deleted, but {key} was")

    def name_of(at: int) -> str:
        place, part = divmod(at, PARTS)
        return f"{place:07d}-{part:06d}"

    def file_key(kind: str, at: int) -> str:
        return f"{kind}/{RUN}/{name_of(at)}-{at:016x}.parquet"

    def content_of(kind: str, at: int) -> str:
        return "fewer" if kind == "data" and at % ERRORS_EVERY == 0 else kind

    def record(at: int) -> Record:
        bad = at % ERRORS_EVERY == 0
        files = []
        for kind in ("data", "errors") if bad else ("data",):
            name = content_of(kind, at)
            files.append(File(file_key(kind, at), len(contents[name]), digests[name], tables[name].num_rows))
        return Record(
            run_id=RUN,
            shard=name_of(at),
            attempt=f"{at:016x}",
            files=tuple(files),
            rows_in=ROWS,
            rows_ok=ROWS - bad,
            rows_error=int(bad),
            source_key=source_key(at // PARTS),
            source_etag=f"{at // PARTS:032x}",
            committed_at=1_700_000_000.0 + at,
            stats=Stats(seconds=1.0, tokens=1000),
            errors=(("empty_text", 1),) if bad else (),
        )

    return Made(folder)


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
