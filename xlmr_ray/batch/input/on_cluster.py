"""Files planned by the workers of a cluster that is there. A file of lines is read through to be planned, so that
terabytes of them would keep one machine busy for hours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from xlmr_ray.batch import codes
from xlmr_ray.batch.input.planning import Planned

MANY = 64  # files; fewer are planned before the workers have started
MOST = 1000  # files under way


@dataclass(frozen=True)
class WorkerPlanning:
    """A file that a worker plans."""

    answer: ray.ObjectRef
    here: Callable[[], Planned]

    def result(self) -> Planned:
        """Where the worker failed, or did not see the file, the driver plans it: what it raises is then as it was, and
        a machine that lacks a folder makes no file of it a lost one.
        """
        with contextlib.suppress(RayError):
            planned: Planned = ray.get(self.answer)
            if planned.dead is None or planned.dead.code != codes.FILE_GONE:
                return planned
        return self.here()

    def cancel(self) -> None:
        ray.cancel(self.answer)


class Workers:
    """The cluster's, a file a task."""

    def __init__(self) -> None:
        self.under_way = max(8, min(MOST, int(2 * ray.cluster_resources().get("CPU", 0))))
        self._task = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(_call)

    def submit(self, plan: Callable[..., Planned], *arguments: Any, **options: Any) -> WorkerPlanning:
        return WorkerPlanning(self._task.remote(plan, arguments, options), lambda: plan(*arguments, **options))


def _call(plan: Callable[..., Planned], arguments: tuple[Any, ...], options: dict[str, Any]) -> Planned:
    return plan(*arguments, **options)


def planning_workers(files: int) -> Workers | None:
    """None where there is no cluster, or too little for it."""
    return Workers() if ray.is_initialized() and files >= MANY else None
