"""What of a run is committed: by earlier launches, before anything starts, and by all, when a launch is stopped."""

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.batch.input.shard_table import ROWS
from xlmr_ray.batch.ledger.in_order import in_order
from xlmr_ray.batch.ledger.record import ATTEMPT_FILE, committed_shards, read_record
from xlmr_ray.batch.plan import Plan
from xlmr_ray.batch.progress import Figures
from xlmr_ray.batch.store.base import Store
from xlmr_ray.errors import JobFailed, UserError

MOST_COUNTED = 20_000  # records that are listed for somebody who waits for the end


@dataclass(frozen=True)
class Done:
    """What earlier launches committed: a truth value for each shard of the plan, and the dead files by id."""

    shards: NDArray[np.bool_]
    files: frozenset[str]

    @property
    def count(self) -> int:
        return int(self.shards.sum()) + len(self.files)


def earlier(store: Store, plan: Plan, figures: Figures, withdrawn: frozenset[str] = frozenset()) -> Done:
    """What is committed. In the figures is then what earlier launches did: what this one has not counted; errors in
    `withdrawn` inputs, which will be done anew, are not. Lists, and reads the records of shards with errors.
    """
    shards = np.zeros(len(plan.shards), np.bool_)
    dead = {file.id: file.rows for file in plan.dead}
    files: set[str] = set()
    names, copies = itertools.tee(committed_shards(store, plan.run_id))
    for name, index in zip(names, plan.shards.indices(copies), strict=True):
        if index >= 0:
            shards[index] = True
        elif name in dead:
            files.add(name)
    done = Done(shards, frozenset(files))
    figures.rows_before = (
        int(plan.shards.columns[shards, ROWS].sum()) + sum(dead[name] for name in files) - figures.rows
    )
    figures.shards_before = done.count - figures.shards
    with_errors = (
        found["shard"]
        for entry in store.list(f"errors/{plan.run_id}/")
        if (found := ATTEMPT_FILE.fullmatch(entry.key.rpartition("/")[2]))
    )
    # Attempts of a shard are beside each other; one that crashed may have no record.
    once = (name for name, _ in itertools.groupby(with_errors))
    figures.errors_before = -figures.rows_error
    for record in in_order(lambda name: read_record(store, plan.run_id, name), once):
        if record is not None and record.source_key not in withdrawn:
            figures.errors_before += record.rows_error + record.rows_lost
    return done


def committed_now(store: Store, run_id: str, figures: Figures) -> str:
    """How many shards have a record: more than the driver has heard of, when it is stopped. Of very many it does not
    wait for a listing.
    """
    heard = figures.shards_before + figures.shards
    if figures.total_shards <= MOST_COUNTED:
        with contextlib.suppress(JobFailed, UserError, OSError):
            return f"{sum(1 for _ in committed_shards(store, run_id)):,}"
    return f"at least {heard:,}"
