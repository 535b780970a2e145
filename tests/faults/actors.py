"""Faults of the processes that score: killed in mid-batch, and out of memory."""

from __future__ import annotations

import os
import random
import time

import psutil

from tests.faults.drivers import wait_until
from tests.faults.lab import PATIENCE, Lab, Tally, environment
from tests.faults.machines import ACTORS, Machines, kill

HEADROOM = 4 << 30  # bytes that a run may take before Ray's threshold
MOST = 8 << 30  # bytes that are taken to pass it


def killed_in_mid_batch(lab: Lab) -> Tally:
    """2: SIGKILL to an actor of each kind while the run is under way, twice each."""
    tally = Tally()
    chance = random.Random(2)
    for name in ACTORS:
        work = lab.work()
        lab.proxy.clear()
        driver = lab.launch_until(work, chance.randint(1, 4))
        struck = 0
        for _ in range(2):
            found = lab.machines.actors(name)
            struck += bool(found) and kill(chance.choice(found))
            lab.wait_for_records(work, driver, work.records + 2)
        tally.struck(struck, lab.finish(tally, work, driver), f"{name} killed")
    return tally


def out_of_memory(lab: Lab) -> Tally:
    """3: the node's memory passes Ray's threshold while the run is under way: Ray kills workers, the run goes on.

    The memory is taken by a process outside Ray, so that what is killed is a worker and not what filled it.
    """
    tally = Tally()
    total, used = psutil.virtual_memory().total, psutil.virtual_memory().used
    threshold = (used + HEADROOM) / total
    if threshold > 0.95:
        tally.skipped = "too little free memory on this machine"
        return tally
    settings = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    with environment(settings):
        machines = Machines(nodes=2)
    try:
        work = lab.work()
        lab.proxy.clear()
        driver = lab.drivers.launch("run", str(work.path), RAY_ADDRESS=machines.address)
        wait_until(lambda: driver.code is not None or work.records >= 2, PATIENCE, every=0.1)
        before = {process.pid for name in ACTORS for process in machines.actors(name)}
        hog = bytearray()
        while len(hog) < MOST and before <= {process.pid for process in psutil.process_iter()}:
            hog += os.urandom(1 << 20) * 128
            time.sleep(0.15)
        killed = before - {process.pid for process in psutil.process_iter()}
        hog.clear()
        tally.struck(len(killed), lab.finish(tally, work, driver), "out of memory")
    finally:
        machines.stop()
    return tally
