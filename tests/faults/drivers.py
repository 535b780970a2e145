"""Drivers to be killed: processes that run the command line as a user would, forked from one that has imported it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

NO_PROGRESS = "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"
# Set to have a run planned in parts, of a file each, that take so many seconds, and scored meanwhile.
IN_PARTS = "XLMR_RAY_TEST_IN_PARTS"
WARM = ["xlmr_ray.cli", "xlmr_ray.batch.run", "xlmr_ray.batch.observe.printing", "xlmr_ray.batch.store.s3"]


def command_line(arguments: Sequence[str], environment: Mapping[str, str], log: str, *, leased: bool) -> None:
    """The body of a driver's process: its output goes to `log`. Without a lease, it starts whoever else drives."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    import ray.data

    from xlmr_ray.batch import run
    from xlmr_ray.cli import main

    if seconds := environment.get(NO_PROGRESS):
        # Ray Data reads the variable when it is imported, which was before the fork
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = float(seconds)
    if seconds := environment.get(IN_PARTS):
        plan_in_parts(float(seconds))
    if not leased:
        vars(run)["leased"] = unleased
    sys.argv = ["xlmr-ray", *arguments]
    main()


def plan_in_parts(seconds: float) -> None:
    from xlmr_ray.batch import plan
    from xlmr_ray.batch.input import planning
    from xlmr_ray.batch.ledger import parts

    plan_input = planning.plan_input

    def slowly(*arguments: Any, **options: Any) -> planning.Planned:
        with one_at_a_time:
            time.sleep(seconds)
        return plan_input(*arguments, **options)

    one_at_a_time = threading.Lock()
    vars(planning)["plan_input"] = slowly
    vars(plan)["LONG"], vars(parts)["EVERY"] = 1, 0.0


class Unchecked:
    """Stands for a lease that nobody takes."""

    def check(self) -> None: ...


@contextlib.contextmanager
def unleased(*args: object, **options: object) -> Iterator[Unchecked]:
    """Stands for `lease.leased`: every launch drives at once."""
    yield Unchecked()


@dataclass
class Driver:
    """A running command line. `code` is its exit code, None while it runs, negative where a signal ended it."""

    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    @property
    def last_line(self) -> str:
        lines = self.said.strip().splitlines()
        return lines[-1] if lines else ""

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def wait(self, timeout: float) -> int | None:
        """The exit code; None where it is still running after `timeout` seconds."""
        self.process.join(timeout)
        return self.code


class Drivers:
    """Starts drivers with `environment` set, their logs in `folder`."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)
        self.started: list[Driver] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(WARM)

    def launch(self, *arguments: str, leased: bool = True, **environment: str) -> Driver:
        log = self.folder / f"driver-{len(self.started)}.log"
        given = (arguments, {**self.environment, **environment}, str(log))
        process = self._context.Process(target=command_line, args=given, kwargs={"leased": leased}, daemon=True)
        process.start()
        self.started.append(Driver(process, log))
        return self.started[-1]

    def stop(self) -> None:
        """Ends those that still run, paused ones too."""
        for driver in self.started:
            if driver.code is None:
                driver.kill()
                driver.wait(10)


def wait_until(condition: Callable[[], bool], timeout: float, *, every: float = 0.02) -> bool:
    """Whether `condition()` became true within `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every)
    return condition()
