"""Files planned by a cluster's workers: the plan is the driver's own."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xlmr_ray.batch.input import on_cluster
from xlmr_ray.batch.input.columns import Columns
from xlmr_ray.batch.input.file import InputChanged
from xlmr_ray.batch.input.kept_types import KeptTypes
from xlmr_ray.batch.input.planning import plan_shards
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.input.source import find_inputs

COLUMNS = Columns(text={"text": "text"}, keep=("lang",))


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(12):
        rows = [{"text": f"{number} {row}", "lang": "en"} for row in range(5 + number)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{number:02}.jsonl").write_text(lines)
        (folder / f"{number:02}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number:02}.parquet")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-9])
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "none.parquet").write_bytes(b"PAR1")
    return find_inputs([str(folder)]).inputs


def planned(inputs, pool=None, readers=READERS):
    kept = KeptTypes(COLUMNS.extra)
    found = list(plan_shards(inputs, shard_rows=4, columns=COLUMNS, readers=readers, kept=kept, pool=pool))
    return found, kept.schema()


class Elsewhere:
    """A reader that is another one in this process, and in others leaves its mark or fails."""

    def __init__(self, reader, folder, error=None):
        self.reader, self.folder, self.error, self.home = reader, folder, error, os.getpid()

    def plan(self, source, columns, **options):
        if os.getpid() != self.home:
            (self.folder / str(os.getpid())).touch()
            if self.error is not None:
                raise self.error
        return self.reader.plan(source, columns, **options)


def elsewhere(folder, error=None):
    return {name: Elsewhere(reader, folder, error) for name, reader in READERS.items()}


def test_workers_plan_what_the_driver_would(ray_session, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(on_cluster, "MANY", 100)
    assert on_cluster.planning_workers(len(inputs)) is None
    monkeypatch.setattr(on_cluster, "MANY", 10)
    pool = on_cluster.planning_workers(len(inputs))
    marks = tmp_path / "marks"
    marks.mkdir()
    assert planned(inputs, pool, elsewhere(marks)) == planned(inputs)
    assert any(marks.iterdir())


def test_workers_need_no_cpu_that_is_free(ray_session, inputs, tmp_path):
    """Beside the actors of a run, which have all of them."""
    import ray

    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self):
            return True

    holders = [Holder.remote() for _ in range(int(ray.available_resources().get("CPU", 0)))]
    ray.get([holder.ready.remote() for holder in holders])
    marks = tmp_path / "marks"
    marks.mkdir()
    pool = on_cluster.PlanningWorkers(beside=True)
    assert planned(inputs, pool, elsewhere(marks)) == planned(inputs)
    assert any(marks.iterdir())
    for holder in holders:
        ray.kill(holder)


@pytest.mark.parametrize("error", [FileNotFoundError("x"), RuntimeError("a worker\nof its own")])
def test_what_a_worker_cannot_read_the_driver_does(ray_session, inputs, tmp_path, error):
    """A folder that is not there on one machine is no lost file."""
    marks = tmp_path / "marks"
    marks.mkdir()
    assert planned(inputs, on_cluster.PlanningWorkers(), elsewhere(marks, error)) == planned(inputs)
    assert any(marks.iterdir())


def test_an_error_is_the_one_that_it_was(ray_session, inputs):
    """An input that is another one since it was listed."""
    with Path(inputs[4].key).open("ab") as file:
        file.write(b"\n")
    messages = []
    for pool in (None, on_cluster.PlanningWorkers()):
        with pytest.raises(InputChanged) as raised:
            planned(inputs, pool)
        assert type(raised.value) is InputChanged
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
