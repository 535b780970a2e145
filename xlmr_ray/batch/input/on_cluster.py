"""Files planned by the workers of a cluster that is there. A file of lines is read through to be planned, so that
terabytes of them would keep one machine busy for hours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.planning import Planned
from xlmr_ray.batch.workers import Call, Workers

MANY = 64  # files; fewer are planned before the workers have started


@dataclass(frozen=True)
class WorkerPlanning:
    """A file that a worker plans."""

    call: Call[Planned]

    def result(self) -> Planned:
        """Where the worker did not see the file, the driver plans it: a machine that lacks a folder makes no file of it
        a lost one.
        """
        planned = self.call.result()
        gone = planned.dead is not None and planned.dead.code == codes.FILE_GONE
        return self.call.here() if gone else planned

    def cancel(self) -> None:
        self.call.cancel()


class PlanningWorkers:
    """The cluster's, a file a task."""

    def __init__(self, *, beside: bool = False) -> None:
        self._workers = Workers(beside=beside)
        self.under_way = self._workers.under_way

    def submit(self, plan: Callable[..., Planned], *arguments: Any, **options: Any) -> WorkerPlanning:
        return WorkerPlanning(self._workers.submit(plan, *arguments, **options))


def planning_workers(files: int, *, beside: bool = False) -> PlanningWorkers | None:
    """None where there is no cluster, or too little for it. `beside`: see `Workers`."""
    return PlanningWorkers(beside=beside) if ray.is_initialized() and files >= MANY else None
