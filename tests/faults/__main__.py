"""All faults, one after another, on this machine: `python -m tests.faults [--rounds N] [--only 1,6]`.

Exit code 1 if a row is lost or there twice, or anything is not as it should be. Service faults (19) have tests of
their own in tests/serve.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback

from rich.console import Console
from rich.table import Table

from tests.faults import actors, driver, nodes, objects, stores
from tests.faults.lab import Case, Lab, Tally, running_lab

# The cases that take nodes away come last.
FAULTS: dict[int, tuple[str, Case]] = {
    1: ("SIGKILL of the driver at each step of a write", driver.killed_at_each_step),
    2: ("SIGKILL of an actor in mid-batch", actors.killed_in_mid_batch),
    3: ("an actor's node out of memory", actors.out_of_memory),
    4: ("a node goes, another comes", nodes.one_goes_one_comes),
    5: ("all nodes go, none returns", nodes.all_go),
    6: ("503 SlowDown for 10 %, 50 %, 100 %", stores.throttled),
    7: ("a PUT succeeds, its answer is lost", stores.answers_lost),
    8: ("bodies cut and connections reset", stores.cut),
    9: ("409 on a conditional PUT", stores.conflicts),
    10: ("two drivers of one run, with lease and without", driver.two_drivers),
    11: ("a driver paused past its lease", driver.paused_past_its_lease),
    12: ("an input overwritten in mid-run", stores.input_overwritten),
    13: ("credentials expire", stores.credentials_expire),
    14: ("the disk is full", stores.disk_full),
    15: ("calls between Ray's processes fail", nodes.calls_fail),
    16: ("a store without conditional writes", stores.no_conditional_writes),
    17: ("a plan, record, manifest or file is damaged", objects.damaged),
    18: ("orphans of crashed attempts lie about", objects.orphans),
}


def run(lab: Lab, case: Case) -> tuple[Tally, float]:
    """The tally of one fault and the seconds it took; what breaks the harness is a separate problem."""
    began = time.monotonic()
    try:
        tally = case(lab)
    except Exception as error:
        traceback.print_exc()
        tally = Tally(problems=[f"{type(error).__name__}: {error}"])
    lab.proxy.clear()
    return tally, time.monotonic() - began


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started must be stopped, too
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault is injected anew")
    parser.add_argument("--only", help="numbers of faults, with commas between")
    arguments = parser.parse_args()
    wanted = [int(number) for number in arguments.only.split(",")] if arguments.only else list(FAULTS)
    console = Console(width=120)
    table = Table("#", "fault", "injected", "survived", "lost", "twice", "seconds", "", box=None, pad_edge=False)
    ok = True
    with running_lab() as lab:
        for number in wanted:
            name, case = FAULTS[number]
            total, seconds = Tally(), 0.0
            for _ in range(arguments.rounds):
                tally, took = run(lab, case)
                seconds += took
                total.injected += tally.injected
                total.survived += tally.survived
                total.lost += tally.lost
                total.twice += tally.twice
                total.problems += tally.problems
                total.skipped = total.skipped or tally.skipped
            fine = total.ok or bool(total.skipped and not total.problems)
            ok &= fine
            verdict = f"skipped: {total.skipped}" if total.skipped else "as it should be" if fine else "NOT"
            counts = [f"{count:,}" for count in (total.injected, total.survived, total.lost, total.twice)]
            table.add_row(str(number), name, *counts, f"{seconds:.0f}", verdict)
            console.print(f"{number:2} {name}: {' '.join(counts)} in {seconds:.0f} s: {verdict}", highlight=False)
            for problem in total.problems:
                console.print(f"   {problem}", highlight=False, markup=False, soft_wrap=True)
    table.add_row("19", "a Serve replica is killed under load", "", "", "", "", "", "skipped: see tests/serve")
    console.print(table, highlight=False)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
