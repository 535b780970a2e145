import contextlib
import time

import pyarrow as pa
import pytest
import ray.data

from xlmr_ray.batch.stream import failure, forget_statistics, rows_of
from xlmr_ray.errors import JobFailed


class Out:
    """Gives out a block for each row, as the tokenizers do for each shard of a pack."""

    def __call__(self, block):
        for at in range(block.num_rows):
            yield block.slice(at, 1)


class One:
    def __call__(self, block):
        if block.num_rows != 1:
            raise AssertionError(block.num_rows)
        if block["n"][0].as_py() < 0:
            raise ValueError("a line\nand another")
        return block


def dataset_of(numbers):
    ray.data.DataContext.get_current().target_max_block_size = 1
    pool = {
        "batch_size": None,
        "batch_format": "pyarrow",
        "compute": ray.data.ActorPoolStrategy(size=1),
        "num_cpus": 0.1,
    }
    tables = [pa.table({"n": numbers[at : at + 8]}) for at in range(0, len(numbers), 8)]
    return ray.data.from_arrow(tables).map_batches(Out, **pool).map_batches(One, **pool)


def test_a_block_is_a_shard_and_what_ray_keeps_of_it_can_be_dropped(ray_session):
    """If the second part fails after an update of Ray: see where it keeps its blocks' statistics now."""
    dataset = dataset_of(list(range(40)))
    seen, forgotten = [], 0
    for row in rows_of(dataset):
        seen.append(row["n"])
        if len(seen) == 30:
            forgotten = forget_statistics(dataset)
    assert sorted(seen) == list(range(40))
    assert forgotten >= 30


def test_what_ray_could_not_do_is_one_line(ray_session):
    with pytest.raises(JobFailed) as failed:
        list(rows_of(dataset_of([1, 2, -3])))
    assert "run the job again to go on" in str(failed.value)
    assert "\n" not in str(failed.value)
    everything_is_free()  # though the exception is still there


def everything_is_free():
    end = time.monotonic() + 60
    while ray.available_resources()["CPU"] < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < end, ray.available_resources()
        time.sleep(0.2)


def test_rows_that_nobody_reads_on_leave_no_actor(ray_session):
    with contextlib.closing(rows_of(dataset_of(list(range(400))))) as rows:
        next(rows)
    everything_is_free()


def test_no_progress_is_one_line_with_what_the_cluster_has(ray_session):
    text = str(failure(ray.data.exceptions.ExecutionTimeoutError("nothing happened\nfor long")))
    assert text.startswith("the cluster does nothing: no shard moved for 1,800 s with 1 machines of ")
    assert "\n" not in text
