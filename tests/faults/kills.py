"""Rounds of SIGKILL: `python -m tests.faults.kills --rounds 200 [--seed N] [--log FILE]`.

A round is one job from an empty output to its published rows. One to three times something is killed at a random
moment: the driver, an actor that tokenizes, encodes or writes, or a node with all that runs on it. A driver that was
killed is launched again, a node replaced. At the end the rows must be a clean run's, byte for byte. Rounds alternate
between a bucket and a local folder, and between a plain job, one whose files are merged before it is published, and one
that is scored while it is planned. Each depends only on the seed and its number; those that a `--log` has are not
done again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.driver import one_record_a_shard
from tests.faults.drivers import IN_PARTS, Driver, wait_until
from tests.faults.lab import PATIENCE, Lab, Tally, Work, running_lab
from tests.faults.machines import ACTORS, kill

VICTIMS = ("driver", *ACTORS, "node")
KINDS = ("plain", "merged", "in parts")
LAUNCHES = 8  # of one job, before a round counts as failed


@dataclass(frozen=True)
class Round:
    """What a round did: each kill as its victim and the records there were; `wrong` says what did not hold."""

    number: int
    seed: int
    store: str
    kills: list[str]
    launches: int
    lost: int
    twice: int
    seconds: float
    wrong: list[str]

    def __str__(self) -> str:
        verdict = "; ".join(self.wrong) if self.wrong else "rows equal"
        kills = ", ".join(self.kills) or "nothing was left to kill"
        return (
            f"round {self.number} seed {self.seed} {self.store}: {kills}; "
            f"{self.launches} launches, lost {self.lost}, twice {self.twice}: {verdict}; {self.seconds:.1f} s"
        )


def play(lab: Lab, number: int, seed: int) -> Round:
    """One round."""
    began = time.monotonic()
    chance = random.Random(f"{seed} {number}")
    local, kind = number % 2 == 1, KINDS[number // 2 % len(KINDS)]
    folder = lab.folder / f"round-{number}"
    source = str(lab.lines) if kind == "in parts" else None
    work = lab.work(source, output=str(folder) if local else None, compact=kind == "merged")
    more = {IN_PARTS: "0.5"} if kind == "in parts" else {}
    tally, kills, launches = Tally(), [], 1
    driver = lab.launch(work, **more)
    for _ in range(chance.randint(1, 3)):
        victim = chance.choice(VICTIMS)
        await_moment(chance, work, driver)
        if driver.code is not None:
            break
        if strike(lab, chance, victim, driver):
            kills.append(f"{victim} at {work.records}")
        if victim == "node":
            lab.machines.add()
        if victim == "driver":
            driver.wait(10)
            driver, launches = lab.launch(work, **more), launches + 1
    while driver.wait(PATIENCE) != 0 and launches < LAUNCHES:
        tally.expect(driver.code is not None, f"no end after {PATIENCE:.0f} s")
        kills.append(f"driver ended with {driver.code} ({driver.last_line[:150]})")
        driver.kill()
        driver, launches = lab.launch(work, **more), launches + 1
    if tally.expect(driver.code == 0, f"exit code {driver.code}: {driver.last_line}"):
        lab.check(tally, work)
        one_record_a_shard(tally, work)
        if kind == "merged":
            tally.expect(bool(list(work.store.list("merged/"))), "files are not merged")
    shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - began
    store = f"{kind}, {'folder' if local else 'bucket'}"
    return Round(number, seed, store, kills, launches, tally.lost, tally.twice, round(seconds, 1), tally.problems)


def await_moment(chance: random.Random, work: Work, driver: Driver) -> None:
    """A moment by the number of records, a little later, or, one time in four, by the clock: actors start, too."""
    if chance.random() < 0.25:
        driver.wait(chance.uniform(0, 8))
    else:
        records = work.records + chance.randint(0, 7)
        wait_until(lambda: driver.code is not None or work.records >= records, PATIENCE, every=0.05)
        driver.wait(chance.uniform(0, 0.3))


def strike(lab: Lab, chance: random.Random, victim: str, driver: Driver) -> bool:
    """Whether there was such a victim, which is no more."""
    if victim == "driver":
        driver.kill()
        return True
    if victim == "node":
        lab.machines.remove(chance.randrange(2))
        return True
    found = lab.machines.actors(victim)
    return bool(found) and kill(chance.choice(found))


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started must be stopped, too
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a line of JSON a round; rounds that are there are not done again")
    arguments = parser.parse_args()
    log: Path | None = arguments.log
    done = [Round(**json.loads(line)) for line in log.read_text().splitlines()] if log and log.exists() else []
    done = [one for one in done if one.seed == arguments.seed and one.number < arguments.rounds]
    numbers = {one.number for one in done}
    with running_lab() as lab:
        lab.clean(lab.folder_of_input())
        for number in range(arguments.rounds):
            if number in numbers:
                continue
            one = play(lab, number, arguments.seed)
            print(one, flush=True)
            done.append(one)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(one)) + "\n")
    killed = Counter(kill.split()[0] for one in done for kill in one.kills if " at " in kill)
    kinds = ", ".join(f"{count} {name}" for name, count in killed.items())
    print(
        f"{len(done)} rounds, {killed.total()} kills ({kinds}), {sum(one.launches for one in done)} launches; "
        f"rows lost {sum(one.lost for one in done)}, twice {sum(one.twice for one in done)}; "
        f"rounds that went wrong: {sum(bool(one.wrong) for one in done)}"
    )
    return 1 if any(one.wrong for one in done) else 0


if __name__ == "__main__":
    sys.exit(main())
