"""Faults of the stores: throttling, lost answers, cut bodies, conflicts, changed inputs, refusals, full disks."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.lab import PATIENCE, Lab, Tally, Work, environment
from tests.rclone import running_rclone
from xlmr_ray.batch.store.base import DEADLINE
from xlmr_ray.batch.store.open import open_store

REFUSED = re.compile(r"was refused \(403( ExpiredToken)?\); check the credentials")
RECORD = re.compile(r"/_runs/\w+/shards/.*\.json")


def sometimes(fault: int | str, share: float, *, seed: int) -> Callable[[str, str], int | str | None]:
    """A fault of the proxy for this share of all requests, at random."""
    chance = random.Random(seed)
    return lambda method, path: fault if chance.random() < share else None


def throttled(lab: Lab) -> Tally:
    """6: 503 SlowDown for a tenth of the requests, for half of them, and for all of them once the run is under way."""
    tally = Tally()
    for share in (0.1, 0.5):
        work = lab.work()
        lab.proxy.clear()
        lab.proxy.fault = sometimes(503, share, seed=6)
        driver = lab.launch(work)
        driver.wait(PATIENCE)
        struck = len(lab.proxy.injected)
        lab.proxy.clear()
        tally.struck(struck, lab.finish(tally, work, driver), f"503 for {share:.0%}")
    work = lab.work()
    lab.proxy.clear()
    driver = lab.launch_until(work, 3)
    lab.proxy.fault = lambda method, path: 503
    began = time.monotonic()
    code = driver.wait(DEADLINE + PATIENCE)
    took, struck = time.monotonic() - began, len(lab.proxy.injected)
    lab.proxy.clear()
    reported = code == 1 and "503 SlowDown" in driver.last_line and "Traceback" not in driver.said
    tally.expect(reported, f"503 for 100%: exit code {code} after {took:.0f} s: {driver.last_line}")
    tally.struck(struck, lab.finish(tally, work) and reported, "503 for 100%")
    return tally


def answers_lost(lab: Lab) -> Tally:
    """7: every third PUT is done, but its answer is lost."""
    return through(lab, nth("PUT", "lost", 3), "answers lost")


def conflicts(lab: Lab) -> Tally:
    """9: 409 for every third conditional PUT (of the records, the plan, the manifest)."""
    return through(lab, nth("PUT", 409, 3, re.compile(r"\.json")), "409")


def cut(lab: Lab) -> Tally:
    """8: the input in the bucket; a third of the GETs are cut in mid-body or reset."""
    chance = random.Random(8)

    def fault(method: str, path: str) -> str | None:
        return chance.choice(("cut", "reset")) if method == "GET" and chance.random() < 0.3 else None

    return through(lab, fault, "cut GETs", lab.folder_of_input(in_bucket=True))


def nth(
    method: str, fault: int | str, every: int, path: re.Pattern[str] | None = None
) -> Callable[..., int | str | None]:
    """A fault of the proxy for every so many requests of this method and path."""
    seen = 0

    def choose(found: str, where: str) -> int | str | None:
        nonlocal seen
        if found != method or (path and not path.search(where)):
            return None
        seen += 1
        return fault if seen % every == 0 else None

    return choose


def through(lab: Lab, fault: Callable[[str, str], int | str | None], name: str, source: str | None = None) -> Tally:
    """One run with the fault all along, which must succeed."""
    tally = Tally()
    work = lab.work(source)
    lab.proxy.clear()
    lab.proxy.fault = fault
    driver = lab.launch(work)
    driver.wait(PATIENCE)
    struck = len(lab.proxy.injected)
    lab.proxy.clear()
    tally.struck(struck, lab.finish(tally, work, driver), name)
    return tally


def input_overwritten(lab: Lab) -> Tally:
    """12: an input object is replaced in mid-run. Its shards fail and it is named; put back, the run goes on."""
    tally = Tally()
    source = lab.folder_of_input(in_bucket=True)
    work = lab.work(source)
    lab.proxy.clear()
    bucket = open_store(source)
    original = bucket.get("b.jsonl")[0]
    overwritten = False

    def fault(method: str, path: str) -> None:
        nonlocal overwritten
        if not overwritten and method == "PUT" and RECORD.search(path):
            overwritten = True
            beside.put("b.jsonl", original.replace(b"a", b"A"))

    beside = open_store(source, options=lab.seaweed.options)
    lab.proxy.fault = fault
    driver = lab.launch(work)
    code = driver.wait(PATIENCE)
    lab.proxy.clear()
    named = code == 1 and f"{source}/b.jsonl: changed since the job was planned" in driver.last_line
    tally.expect(named, f"exit code {code}: {driver.last_line}")
    bucket.put("b.jsonl", original)
    tally.struck(int(overwritten), lab.finish(tally, work) and named, "an input overwritten")
    return tally


def credentials_expire(lab: Lab) -> Tally:
    """13: from a moment on, every request is answered 403 ExpiredToken: the run ends at once, with few requests."""
    tally = Tally()
    work = lab.work()
    lab.proxy.clear()
    driver = lab.launch_until(work, 3)
    lab.proxy.fault = lambda method, path: 403
    began = time.monotonic()
    code = driver.wait(PATIENCE)
    took, struck = time.monotonic() - began, len(lab.proxy.injected)
    lab.proxy.clear()
    reported = code == 1 and bool(REFUSED.search(driver.last_line))
    reported &= tally.expect(not secrets_in(lab, work), f"a secret is in {secrets_in(lab, work)}")
    tally.expect(reported, f"exit code {code} after {took:.0f} s: {driver.last_line}")
    # a request a shard under way in each actor, the lease, and the driver's own
    tally.expect(struck <= 20, f"{struck} requests after the first refusal")
    tally.struck(struck, lab.finish(tally, work) and reported and struck <= 20, "403")
    return tally


def secrets_in(lab: Lab, work: Work) -> list[str]:
    """What a run left and printed that holds a key of the store: objects, drivers' output, the cluster's logs."""
    wanted = [str(lab.seaweed.options[name]).encode() for name in ("key", "secret")]
    lab.proxy.clear()
    found = [entry.key for entry in work.store.list("") if any(key in work.store.get(entry.key)[0] for key in wanted)]
    files = [*lab.folder.glob("*.log"), *Path(lab.machines.logs).rglob("*.*")]
    return found + [str(path) for path in files if path.is_file() and any(key in path.read_bytes() for key in wanted)]


def disk_full(lab: Lab) -> Tally:
    """14: the output is a disk too small for it. One clear line; with more room, the same command goes on."""
    tally = Tally()
    disk = lab.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True).returncode:
        tally.skipped = "mounting a small disk needs root"
        return tally
    try:
        work = lab.work(output=str(disk / "out"))
        lab.proxy.clear()
        driver = lab.launch(work)
        code = driver.wait(PATIENCE)
        reported = (
            code == 1 and "the disk is full; free some space" in driver.last_line and "Traceback" not in driver.said
        )
        tally.expect(reported, f"exit code {code}: {driver.last_line}")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        tally.struck(1, lab.finish(tally, work) and reported, "a full disk")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
    return tally


def no_conditional_writes(lab: Lab) -> Tally:
    """16: rclone's S3 server has none: refused at the start, used at least once where the user says so."""
    tally = Tally()
    with running_rclone() as rclone:
        with environment({"AWS_ENDPOINT_URL": rclone.endpoint}):
            work = lab.work(output=rclone.new_folder())
        refused(lab, tally, work, "rclone", rclone.endpoint)
    return tally


def refused(lab: Lab, tally: Tally, work: Work, name: str, endpoint: str) -> None:
    """Exit code 2 and one line; with --at-least-once the rows, and that it is so."""
    driver = lab.launch(work, AWS_ENDPOINT_URL=endpoint)
    code = driver.wait(PATIENCE)
    one_line = len(driver.said.strip().splitlines()) == 1 and "this store has no conditional writes" in driver.said
    reported = tally.expect(code == 2 and one_line, f"{name}: exit code {code}: {driver.last_line}")
    again = lab.launch(work, "--at-least-once", AWS_ENDPOINT_URL=endpoint)
    code = again.wait(PATIENCE)
    said = tally.expect(code == 0 and "at least once" in again.said, f"{name}: exit code {code}: {again.last_line}")
    tally.struck(1, reported and said and lab.check(tally, work), name)
