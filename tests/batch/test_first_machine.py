"""A cluster without machines: what a job asks it for, and that it waits no longer than it says."""

import pytest
import ray.autoscaler.sdk

from xlmr_ray import JobFailed
from xlmr_ray.batch import first_machine
from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.first_machine import await_first_machine
from xlmr_ray.batch.job import check_job

NOTHING = Resources((0.0,), (0.0,), 0.0)
CPUS = Resources((8.0,), (0.0,), 1e9)
ONE_EACH = Resources((8.0, 8.0), (1.0, 1.0), 1e9)
TWO = Resources((8.0,), (2.0,), 1e9)


def job(encoders, **more):
    content = {"input": {"path": "x"}, "tasks": "embedding", "output": {"path": "y"}}
    return check_job({**content, "cluster": {"encoders": encoders, **more.pop("cluster", {})}, **more}, "test")


@pytest.fixture
def cluster(monkeypatch):
    """What is asked for; each look at the cluster finds the next of `there`, the last one from then on."""

    class Cluster:
        def __init__(self):
            self.asked, self.there = [], [NOTHING]

        def look(self):
            return self.there.pop(0) if len(self.there) > 1 else self.there[0]

    found = Cluster()
    monkeypatch.setattr(first_machine, "cluster_resources", found.look)
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda bundles: found.asked.append(bundles))
    monkeypatch.setattr(first_machine.time, "sleep", lambda _: None)
    return found


@pytest.mark.parametrize(
    ("content", "too_little", "enough", "bundle"),
    [
        ({}, NOTHING, CPUS, {"CPU": 1.0}),
        ({"engine": {"device": "cuda"}}, CPUS, ONE_EACH, {"CPU": 1.0, "GPU": 1.0}),
        ({"cluster": {"gpus_per_encoder": 0.5}}, CPUS, ONE_EACH, {"CPU": 1.0, "GPU": 1.0}),
        ({"cluster": {"gpus_per_encoder": 2}}, ONE_EACH, TWO, {"CPU": 1.0, "GPU": 2.0}),
        ({"engine": {"device": "cpu"}, "cluster": {"gpus_per_encoder": 1}}, NOTHING, CPUS, {"CPU": 1.0}),
    ],
)
def test_one_machine_is_asked_for_until_it_is_there(cluster, content, too_little, enough, bundle):
    cluster.there = [too_little] * 4 + [enough]
    said = []
    await_first_machine(job({"min": 1, "max": 4}, **content), said.append)
    assert cluster.asked == [[bundle], []]
    assert len(said) == 1
    assert "the cluster has nothing for an encoder" in said[0]


def test_what_is_there_is_not_asked_for(cluster):
    cluster.there = [Resources((1.0,), (0.0,), 1e9)]
    await_first_machine(job({"max": 4}), pytest.fail)
    assert cluster.asked == []


@pytest.mark.parametrize("encoders", ["auto", 3])
def test_a_job_that_names_no_range_takes_what_is_there(cluster, encoders):
    await_first_machine(job(encoders), pytest.fail)
    assert cluster.asked == []


def test_it_waits_no_longer_and_takes_back_what_it_asked_for(cluster, monkeypatch):
    class Context:
        gcs_address = "host:6379"

    monkeypatch.setattr(first_machine.ray, "get_runtime_context", Context)
    with pytest.raises(JobFailed, match=r"cluster\.address host:6379: no machine for an encoder came in 0 s; see that"):
        await_first_machine(job({"max": 4}), lambda _: None, wait=0)
    assert cluster.asked == [[{"CPU": 1.0}], []]
