"""Faults of the cluster: nodes that go and come, or never come back, and calls between its processes that fail."""

from __future__ import annotations

import json
import time

from tests.faults.drivers import NO_PROGRESS
from tests.faults.lab import PATIENCE, Lab, Tally, environment
from tests.faults.machines import Machines

CALLS = ("CoreWorkerService.grpc_client.PushTask", "NodeManagerService.grpc_client.RequestWorkerLease")
CERTAIN = 2  # requests and answers of each call that are lost for certain, in each process
BOUND = 20  # seconds without progress, after which a run is to give up


def one_goes_one_comes(lab: Lab) -> Tally:
    """4: SIGKILL to a node with all that runs on it, and another one joins; once for each of the two nodes."""
    tally = Tally()
    for index in (0, 1):
        work = lab.work()
        lab.proxy.clear()
        driver = lab.launch_until(work, 2)
        lab.machines.remove(index)
        time.sleep(1)
        lab.machines.add()
        tally.struck(1, lab.finish(tally, work, driver), f"node {index} removed")
    return tally


def all_go(lab: Lab) -> Tally:
    """5: every node goes and none returns: a bounded wait, one line; the same command goes on once there are some."""
    tally = Tally()
    work = lab.work()
    lab.proxy.clear()
    driver = lab.launch_until(work, 2, **{NO_PROGRESS: str(BOUND)})
    for _ in range(2):
        lab.machines.remove()
    code = driver.wait(PATIENCE)
    driver.kill()
    for _ in range(2):
        lab.machines.add()
    clear = code == 1 and driver.last_line.startswith("xlmr-ray: ") and "Traceback" not in driver.said
    tally.expect(clear, f"ended with {code}: {driver.last_line}")
    tally.struck(2, lab.finish(tally, work) and clear, "all nodes removed")
    return tally


def calls_fail(lab: Lab) -> Tally:
    """15: calls between Ray's own processes fail, by its own fault injection: requests lost, and answers lost.

    Counted are those that are certain, the first ones of each driver; others follow at random, in actors too.
    """
    tally = Tally()
    failing = {
        "num_failures": 20,
        "req_failure_prob": 15,
        "resp_failure_prob": 15,
        "num_lower_bound_req_failures": CERTAIN,
        "num_lower_bound_resp_failures": CERTAIN,
    }
    faults = {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(CALLS, failing))}
    with environment(faults):
        machines = Machines(nodes=2)
    try:
        for _ in range(2):
            work = lab.work()
            lab.proxy.clear()
            driver = lab.drivers.launch("run", str(work.path), RAY_ADDRESS=machines.address, **faults)
            tally.struck(2 * CERTAIN * len(CALLS), lab.finish(tally, work, driver), "failing calls")
    finally:
        machines.stop()
    return tally
