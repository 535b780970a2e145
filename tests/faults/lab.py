"""Where faults are injected: a bucket behind a faulty proxy, clusters that can be killed, and what a clean run gave."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.corpus import write_corpus, write_job, write_lines
from tests.faults.drivers import Driver, Drivers, wait_until
from tests.faults.machines import Machines
from tests.faults.rows import Rows, difference, published
from tests.faulty_proxy import FaultyProxy, running_proxy
from tests.seaweed import SeaweedFS, running_seaweed
from xlmr_ray.batch.store.base import Store
from xlmr_ray.batch.store.open import open_store

PATIENCE = 240.0  # seconds that one driver may take on a busy machine
LEASE = "3"  # seconds after which a driver without a sign of life is replaced


@dataclass
class Tally:
    """What came of a fault: how often it struck, how often the job went on as it should, and which rows are wrong."""

    injected: int = 0
    survived: int = 0
    lost: int = 0
    twice: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def ok(self) -> bool:
        return not (self.lost or self.twice or self.problems) and self.survived == self.injected

    def expect(self, holds: bool, problem: str) -> bool:
        """Notes the problem where something does not hold."""
        if not holds:
            self.problems.append(problem)
        return holds

    def struck(self, times: int, holds: bool, problem: str) -> None:
        """The fault struck so many times in a job; `holds` says whether that ended as it should."""
        self.injected += times
        self.survived += times if self.expect(holds, problem) else 0
        self.expect(times > 0, "the fault did not strike")


@dataclass(frozen=True)
class Work:
    """A job file, its output as a store, and the rows that it must give."""

    path: Path
    output: str
    store: Store
    clean: Rows

    @property
    def records(self) -> int:
        """Shards committed so far, over all runs."""
        return sum(
            entry.key.endswith(".json")
            for run in self.store.folders("_runs/")
            for entry in self.store.list(f"_runs/{run}/shards/")
        )


class Lab:
    """One for all faults: starting a cluster takes longer than most of them."""

    def __init__(self, folder: Path, seaweed: SeaweedFS, proxy: FaultyProxy) -> None:
        self.folder, self.seaweed, self.proxy = folder, seaweed, proxy
        self.corpus = folder / "corpus"
        write_corpus(self.corpus)
        self.lines = folder / "lines"
        write_lines(self.lines)
        self._machines: list[Machines] = []
        self._clean: dict[str, Rows] = {}
        self._works = 0
        self.drivers = Drivers(folder, {"XLMR_RAY_LEASE_SECONDS": LEASE})

    @property
    def machines(self) -> Machines:
        return self.cluster(0)

    def cluster(self, index: int) -> Machines:
        """The cluster of this number, started when it is first asked for: a second one is for a second driver."""
        while len(self._machines) <= index:
            self._machines.append(Machines(nodes=1 if self._machines else 2))
        return self._machines[index]

    def folder_of_input(self, *, in_bucket: bool = False) -> str:
        """The corpus: a local folder, or a fresh copy of it in the bucket."""
        if not in_bucket:
            return str(self.corpus)
        url = f"{self.seaweed.new_folder()}/corpus"
        store = open_store(url)
        for path in self.corpus.iterdir():
            store.put(path.name, path.read_bytes())
        return url

    def work(self, source: str | None = None, *, output: str | None = None, compact: bool = False) -> Work:
        """A new job with its own output in the bucket, or where `output` says."""
        source = source or self.folder_of_input()
        self._works += 1
        output = output or self.seaweed.new_folder()
        path = write_job(self.folder / f"job-{self._works}.yaml", source, output, compact=compact)
        return Work(path, output, open_store(output), self.clean(source))

    def clean(self, source: str) -> Rows:
        """What a run without faults publishes."""
        if source not in self._clean:
            self.proxy.clear()
            output = self.folder / f"clean-{len(self._clean)}"
            path = write_job(self.folder / f"{output.name}.yaml", source, str(output))
            driver = self.launch(path)
            if driver.wait(PATIENCE) != 0:
                raise RuntimeError(f"a run without faults failed:\n{driver.said}")
            self._clean[source] = published(open_store(str(output)))
        return self._clean[source]

    def launch(self, job: Path | Work, *more: str, cluster: int = 0, leased: bool = True, **environment: str) -> Driver:
        """A driver of the job, on a cluster of ours."""
        path = job.path if isinstance(job, Work) else job
        environment["RAY_ADDRESS"] = self.cluster(cluster).address
        return self.drivers.launch("run", str(path), *more, leased=leased, **environment)

    def launch_until(self, work: Work, records: int, **more: str) -> Driver:
        """A driver that has committed at least so many shards, or has ended."""
        driver = self.launch(work, **more)
        self.wait_for_records(work, driver, records)
        return driver

    def wait_for_records(self, work: Work, driver: Driver, records: int) -> None:
        """Until at least so many shards are committed, or the driver has ended."""
        wait_until(lambda: driver.code is not None or work.records >= records, PATIENCE, every=0.1)

    def check(self, tally: Tally, work: Work) -> bool:
        """Whether the published rows are a clean run's, counted in the tally."""
        try:
            found = difference(work.clean, published(work.store))
        except LookupError as error:
            return tally.expect(False, str(error))
        tally.lost += found.lost
        tally.twice += found.twice
        return tally.expect(found.same, f"{work.output}: not the rows of a clean run")

    def finish(self, tally: Tally, work: Work, driver: Driver | None = None, **more: str) -> bool:
        """Waits for the driver, or launches one, and compares what it publishes with a clean run."""
        driver = driver or self.launch(work, **more)
        code = driver.wait(PATIENCE)
        driver.kill()
        if not tally.expect(code == 0, f"exit code {code}: {driver.last_line}"):
            return False
        return self.check(tally, work)

    def stop(self) -> None:
        self.drivers.stop()
        for machines in self._machines:
            machines.stop()


@contextlib.contextmanager
def running_lab() -> Iterator[Lab]:
    """A lab whose every request to the store goes through its proxy, those of the actors too."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        seaweed = stack.enter_context(running_seaweed())
        proxy = stack.enter_context(running_proxy(seaweed.endpoint))
        stack.enter_context(environment({**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}))
        lab = Lab(folder, seaweed, proxy)
        stack.callback(lab.stop)
        yield lab


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """This process's environment with `values`, and as it was afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


Case = Callable[[Lab], Tally]
