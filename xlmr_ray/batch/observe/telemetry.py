"""What a launch reports while it runs and when it ends: metrics, lineage, and the run's report.

None of it decides an answer, so none of it ends a job: what goes wrong here is one line on the console.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from xlmr_ray.batch.cluster import Sizes
from xlmr_ray.batch.job import Job
from xlmr_ray.batch.ledger.manifest import Manifest
from xlmr_ray.batch.observe.drift import Drift
from xlmr_ray.batch.observe.launches import leave_launch
from xlmr_ray.batch.observe.lineage import Lineage
from xlmr_ray.batch.observe.report.leave import leave_report, report_key
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.stages.shard_cost import Committed
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import Interrupted, JobFailed
from xlmr_ray.text.progress_line import say
from xlmr_ray.text.redact import redacted

if TYPE_CHECKING:
    from xlmr_ray.batch.observe.metrics import RunMetrics


class Watch:
    """Of one launch of a run."""

    def __init__(self, job: Job, store: Store, run_id: str, console: Console, lineage: Lineage | None) -> None:
        self.job, self.store, self.run_id, self.console, self.lineage = job, store, run_id, console, lineage
        self.metrics: RunMetrics | None = None
        self.manifest: Manifest | None = None

    def launched(self, size: Sizes, figures: Figures) -> None:
        """The cluster is there, and the actors are about to start."""
        with self.trying("what the launch is made of cannot be written"):
            leave_launch(self.store, self.run_id, self.job, size)
        from xlmr_ray.batch.observe.metrics import (
            RunMetrics,  # here, so that a launch with nothing to do does without ray
        )

        if self.metrics is not None:  # those of what was scored while it was planned
            self.metrics.close()
        with self.trying("no metrics"):
            self.metrics = RunMetrics(job=self.job.name, run_id=self.run_id, figures=figures)

    def shard(self, done: Committed) -> None:
        """A shard was committed, and the figures have it."""
        if self.metrics is not None:
            self.metrics.shard(done)

    def drift(self, found: Drift) -> None:
        """How far the run is from what was scored before."""
        if self.metrics is not None:
            self.metrics.drift(found)

    def finished(self, manifest: Manifest, *, anew: bool) -> None:
        """The run is finished, by this launch or by one that it waited for (`anew`), or was before."""
        self.manifest = manifest
        if anew or self.store.head(report_key(self.run_id)) is None:
            self.report()

    def report(self) -> None:
        with self.trying(f"no report; `xlmr-ray report {self.job.output.path} --run {self.run_id}` makes it"):
            leave_report(self.store, self.run_id)

    def emit(self, event: Callable[[Lineage], None]) -> None:
        if self.lineage is not None:
            with self.trying("no lineage event"):
                event(self.lineage)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = " ".join(redacted(str(error)).split()) or type(error).__name__
            say(self.console, f"{what}: {reason}")


@contextlib.contextmanager
def watched(
    job: Job, store: Store, run_id: str, console: Console, *, rows: int | None, files: int, models: Mapping[str, str]
) -> Iterator[Watch]:
    """A watch over a launch, with lineage events for its start and its end. `rows`: None where they are not counted
    yet; `models`: digests of the weights by the models' names. Raises UserError where lineage is asked for and its
    client is not installed.
    """
    lineage = None if job.lineage is None else Lineage(job, job.lineage, run_id, store, dict(models))
    watch = Watch(job, store, run_id, console, lineage)
    watch.emit(lambda lineage: lineage.start(rows, files))
    try:
        yield watch
    except JobFailed as error:
        reason = str(error)
        stopped = isinstance(error, Interrupted)
        watch.emit(lambda lineage: lineage.abort(reason) if stopped else lineage.fail(reason))
        raise
    except BaseException as error:
        kind = type(error).__name__
        watch.emit(lambda lineage: lineage.fail(kind))
        raise
    finally:
        if watch.metrics is not None:
            watch.metrics.close()
    if (manifest := watch.manifest) is not None:
        watch.emit(lambda lineage: lineage.complete(manifest))
