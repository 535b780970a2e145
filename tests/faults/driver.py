"""Faults of the driver: killed at each step of a shard's write and of the run's end, doubled, paused."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.drivers import Driver, wait_until
from tests.faults.lab import PATIENCE, Lab, Tally, Work
from xlmr_ray.batch.ledger.gathered import committed
from xlmr_ray.batch.ledger.published import current

PAIRS = 10


@dataclass(frozen=True)
class Step:
    """A request of a run: the `number`th of this method whose path matches. `after`: once the store has done it."""

    name: str
    method: str
    path: str
    number: int
    after: bool


PLAN, LEASE = r"/_runs/\w+/plan\.json", r"/_runs/\w+/lease\.json"
DATA, ERRORS = r"/data/\w+/.*\.parquet", r"/errors/\w+/.*\.parquet"
RECORD, MANIFEST, CURRENT = r"/_runs/\w+/shards/.*\.json", r"/_runs/\w+/manifest\.json", r"/_current\.json"

# Each launch of a job is killed at its next step, and the last one ends it.
CHAINS = (
    (
        Step("plan", "PUT", PLAN, 1, after=True),
        Step("lease", "PUT", LEASE, 1, after=True),
        Step("data file", "PUT", DATA, 2, after=False),
        Step("data file", "PUT", DATA, 2, after=True),
        Step("look at the data file", "HEAD", DATA, 2, after=True),
        Step("error file", "PUT", ERRORS, 1, after=False),
        Step("error file", "PUT", ERRORS, 1, after=True),
    ),
    (
        Step("record", "PUT", RECORD, 4, after=False),
        Step("record", "PUT", RECORD, 4, after=True),
        Step("manifest", "PUT", MANIFEST, 1, after=False),
        Step("manifest", "PUT", MANIFEST, 1, after=True),
        Step("published pointer", "PUT", CURRENT, 1, after=False),
        Step("published pointer", "PUT", CURRENT, 1, after=True),
    ),
)


def killed_at_each_step(lab: Lab) -> Tally:
    """1: SIGKILL to the driver at each step. The request that was under way is dropped, or done but never answered."""
    tally = Tally()
    for chain in CHAINS:
        work = lab.work()
        struck = sum(killed_at(lab, tally, work, step) for step in chain)
        same = lab.finish(tally, work) and one_record_a_shard(tally, work)
        tally.struck(struck, same, f"killed {struck} times of {len(chain)}")
    return tally


def killed_at(lab: Lab, tally: Tally, work: Work, step: Step) -> int:
    """Launches the job to kill it at this step; 1 where that came to be."""
    lab.proxy.clear()
    driver: list[Driver] = []
    lab.proxy.fault = at(step, lambda: driver[0].kill())
    driver.append(lab.launch(work))
    code = driver[0].wait(PATIENCE)
    lab.proxy.clear()
    when = "after" if step.after else "before"
    return int(tally.expect(code == -signal.SIGKILL, f"{when} {step.name}: not killed, but ended with {code}"))


def at(step: Step, kill: Callable[[], object]) -> Callable[[str, str], Callable[[], object] | str | None]:
    """A fault of the proxy: `kill` at the step, once."""
    pattern = re.compile(step.path)
    seen = 0

    def fault(method: str, path: str) -> Callable[[], object] | str | None:
        nonlocal seen
        if method != step.method or not pattern.search(path.partition("?")[0]):
            return None
        seen += 1
        if seen != step.number:
            return None
        if step.after:
            return kill
        kill()
        return "reset"

    return fault


def two_drivers(lab: Lab) -> Tally:
    """10: two drivers started together on one job, each on its own cluster, with the lease and without."""
    tally = Tally()
    for pair in range(PAIRS):
        for leased in (True, False):
            work = lab.work()
            lab.proxy.clear()
            drivers = [lab.launch(work, cluster=index, leased=leased) for index in (0, 1)]
            codes = [driver.wait(PATIENCE) for driver in drivers]
            name = f"pair {pair}, {'with' if leased else 'without'} the lease"
            said = "; ".join(driver.last_line for driver in drivers)
            held = tally.expect(codes == [0, 0], f"{name}: exit codes {codes}: {said}")
            tally.struck(1, lab.check(tally, work) and one_record_a_shard(tally, work) and held, name)
            if not leased:
                both = all("nothing left to do" not in driver.said for driver in drivers)
                tally.expect(both, f"{name}: the two did not run at the same time")
    return tally


def one_record_a_shard(tally: Tally, work: Work) -> bool:
    """And one file a record and kind: what the loser wrote is gone."""
    found = current(work.store)
    if found is None:
        return False
    records = list(committed(work.store, found.run_id))
    named = {file.key for record in records for file in record.files}
    there = {entry.key for kind in ("data", "errors") for entry in work.store.list(f"{kind}/{found.run_id}/")}
    tally.expect(len({record.shard for record in records}) == len(records), "two records of one shard")
    return tally.expect(named == there, f"{len(there - named)} files without a record, {len(named - there)} missing")


def paused_past_its_lease(lab: Lab) -> Tally:
    """11: SIGSTOP to a driver until another has taken its run over, then SIGCONT: it stops, with one line."""
    tally = Tally()
    work = lab.work()
    lab.proxy.clear()
    first = lab.launch_until(work, 3)
    first.signal(signal.SIGSTOP)
    # the one that is paused holds the first cluster's CPUs
    second = lab.launch(work, cluster=1)
    taken_over = wait_until(lambda: "going on in its place" in second.said, PATIENCE, every=0.1)
    tally.expect(taken_over, f"nobody took over: {second.last_line}")
    first.signal(signal.SIGCONT)
    code = first.wait(PATIENCE)
    stopped = code == 1 and "was replaced by" in first.last_line and "Traceback" not in first.said
    tally.expect(stopped, f"the first ended with {code}: {first.last_line}")
    tally.struck(1, lab.finish(tally, work, second) and taken_over and stopped, "a pause")
    return tally
