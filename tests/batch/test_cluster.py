"""How many actors of which size: never more than the cluster counts, never none."""

import io
import logging
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlmr_ray.batch import cluster
from xlmr_ray.batch.cluster import WRITER_CPUS, Resources, cluster_sizes, largest_share
from xlmr_ray.batch.job import ClusterSection
from xlmr_ray.errors import UserError


def having(*cpus, gpus=(0,), memory=0.0):
    return Resources(tuple(map(float, cpus)), tuple(map(float, gpus)), memory)


@given(st.integers(1, 300), st.integers(0, 64), st.floats(0, 1e12), st.integers(0, 10**10), st.integers(1, 400))
def test_what_is_counted_is_there(cpus, gpus, memory, weights, shards):
    size = cluster_sizes(having(cpus, gpus=[gpus], memory=memory), ClusterSection(), "auto", weights, shards)
    assert 1 <= size.encoders <= shards
    assert size.tokenizers >= 1
    assert size.encoders * size.encoder_gpus <= gpus
    if not gpus:
        wanted = size.encoders * size.encoder_cpus + size.tokenizers * size.tokenizer_cpus
        wanted += size.writers * WRITER_CPUS
        assert wanted <= cpus + 1e-9
        assert size.encoders * size.threads <= max(cpus, size.encoders)
        assert size.encoders == 1 or size.encoders * weights <= memory / 2


def test_an_encoder_a_core_as_far_as_memory_goes():
    size = cluster_sizes(having(2, memory=16e9), ClusterSection(), "auto", 500_000_000)
    assert (size.encoders, size.threads) == (2, 1)
    size = cluster_sizes(having(64, memory=64e9), ClusterSection(), "auto", 2_240_000_000)
    assert (size.encoders, size.threads) == (9, 7)


def test_no_more_encoders_than_shards():
    size = cluster_sizes(having(64, memory=64e9), ClusterSection(), "auto", 0, 1)
    assert (size.encoders, size.threads) == (1, 64)
    there = having(64, gpus=[8], memory=64e9)
    assert cluster_sizes(there, ClusterSection(), "auto", 0, 3).encoders == 3
    assert cluster_sizes(there, ClusterSection(encoders=4), "auto", 0, 3).encoders == 4


def test_an_encoder_asks_for_no_more_than_a_machine_has():
    there = having(2, 2, memory=64e9)
    one = cluster_sizes(there, ClusterSection(encoders=1), "auto", 0)
    assert (one.encoder_cpus, one.threads) == (1.75, 2)
    three = cluster_sizes(there, ClusterSection(encoders=3), "auto", 0)
    assert three.encoder_cpus == 0.87  # two of them share a machine
    assert cluster_sizes(having(8, 1, memory=64e9), ClusterSection(encoders=2), "auto", 0).encoder_cpus == 3.75


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=6),
    st.lists(st.sampled_from([0.25, 0.1]), max_size=4),
    st.integers(1, 40),
)
def test_the_largest_share_has_a_place_for_everyone(free, others, wanted):
    share = largest_share([float(one) for one in free], others, wanted)
    left = sorted((100 * one for one in free), reverse=True)
    for other in others:
        left[0] -= round(100 * other)
        left.sort(reverse=True)
    if min(left) >= 0 and sum(left) >= wanted * max(2, len(left)):
        assert sum(one // round(100 * share) for one in left) >= wanted
        assert sum(one // (round(100 * share) + 1) for one in left) < wanted


def test_an_encoder_for_each_gpu_and_tokenizers_to_feed_it():
    size = cluster_sizes(having(96, gpus=[8]), ClusterSection(), "auto", 0)
    assert (size.encoders, size.encoder_gpus, size.tokenizers) == (8, 1.0, 64)
    assert cluster_sizes(having(96, gpus=[8]), ClusterSection(), "cpu", 0).encoder_gpus == 0


def test_the_job_file_goes_before():
    size = cluster_sizes(
        having(16, gpus=[2]), ClusterSection(encoders=4, tokenizers=3, gpus_per_encoder=0.5), "auto", 0
    )
    assert (size.encoders, size.tokenizers, size.encoder_gpus) == (4, 3, 0.5)


@pytest.mark.parametrize(
    ("gpus", "share", "encoders"),
    [([2], 0.4, 4), ([1, 1], 0.4, 4), ([8, 8], 0.5, 32), ([3], 1 / 3, 9), ([8, 2], 4, 2), ([4, 4], 3, 2), ([8], 1, 8)],
)
def test_a_share_of_a_gpu_is_on_one_and_several_are_on_one_machine(gpus, share, encoders):
    assert cluster_sizes(having(64, gpus=gpus), ClusterSection(gpus_per_encoder=share), "auto", 0).encoders == encoders


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "said"),
    [
        ([0], "auto", {"gpus_per_encoder": 1}, r"gpus_per_encoder: 1, but no machine .*use engine\.device: cpu"),
        ([0], "cuda", {}, r"no machine of the cluster has as many \(GPUs in all: 0\)"),
        ([1, 1], "auto", {"gpus_per_encoder": 2}, r"gpus_per_encoder: 2, but no machine"),
        ([1], "auto", {"gpus_per_encoder": 0}, r"0 with encoders on GPUs; for CPUs use engine\.device: cpu"),
        ([2], "auto", {"gpus_per_encoder": 0.4, "encoders": 5}, r"5 of 0\.4 GPUs, but this machine's 2 carry 4"),
    ],
)
def test_gpus_that_are_not_there(gpus, device, asked, said):
    with pytest.raises(UserError, match=said):
        cluster_sizes(having(4, gpus=gpus), ClusterSection(**asked), device, 0)


def test_a_cluster_that_may_grow_is_asked_for_more_than_it_has():
    assert (
        cluster_sizes(having(8, gpus=[1]), ClusterSection(address="10.0.0.1:6379", encoders=4), "cuda", 0).encoders == 4
    )


def growing(least, most, **more):
    return ClusterSection.model_validate({"encoders": {"min": least, "max": most}, **more})


@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 40), st.integers(0, 40), st.integers(1, 100))
def test_a_range_begins_with_what_is_there_and_may_grow(cpus, gpus, least, more, shards):
    there = having(cpus, gpus=[gpus], memory=1e12)
    size = cluster_sizes(there, growing(least, least + more, address="host:1"), "auto", 0, shards)
    plain = cluster_sizes(there, ClusterSection(), "auto", 0, shards)
    assert size.encoders == min(max(least, plain.encoders), least + more, shards)
    assert size.most == min(least + more, shards)
    assert size.grown(size.encoders) == size.most
    assert size.grown(size.tokenizers) * size.encoders >= size.tokenizers * size.most
    assert (size.encoder_gpus, size.threads >= (0 if gpus else 1)) == (plain.encoder_gpus, True)
    if size.encoders >= plain.encoders and not gpus:  # those to come are as large as those that are here
        assert (size.encoder_cpus, size.threads) == (plain.encoder_cpus, plain.threads)


def test_what_grows_says_so():
    there = having(4, memory=1e12)
    assert str(cluster_sizes(there, growing(1, 16, address="host:1"), "auto", 0)) == (
        "1 tokenizer, 4 encoders of 1 thread, 1 writer, up to 16 encoders as the cluster grows"
    )
    assert "grows" not in str(cluster_sizes(there, growing(1, 4, address="host:1"), "auto", 0))
    alone = cluster_sizes(there, growing(1, 16, address="local"), "auto", 0)  # one machine, which stays one
    assert (alone.encoders, alone.grown(alone.encoders), "grows" in str(alone)) == (4, 4, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min": 3, "max": 2}, "min: 3 is more than max: 2"),
        ({"max": 0}, "max"),
        ({"least": 1, "max": 2}, "least"),
        ({"min": 2}, "max"),
    ],
)
def test_a_range_that_is_none(given, said):
    from xlmr_ray.batch.job import check_job

    content = {"input": {"path": "x"}, "tasks": "embedding", "output": {"path": "y"}, "cluster": {"encoders": given}}
    with pytest.raises(UserError, match=said) as raised:
        check_job(content, "job.yaml")
    assert "\n" not in str(raised.value)


def test_no_gpus_on_cpus():
    assert cluster_sizes(having(4, memory=64e9), ClusterSection(gpus_per_encoder=0), "auto", 0).encoder_gpus == 0
    assert (
        cluster_sizes(having(4, memory=64e9, gpus=[2]), ClusterSection(gpus_per_encoder=0), "cpu", 0).encoder_gpus == 0
    )


def test_part_of_a_gpu_beside_a_whole_one_is_refused():
    with pytest.raises(ValueError, match="a part of one GPU, or a whole number of them"):
        ClusterSection(gpus_per_encoder=1.5)


@pytest.mark.parametrize(
    ("kinds", "dtype"), [(["H200"], "bfloat16"), (["T4"], "float16"), (["A100", "T4"], "float16"), ([], "bfloat16")]
)
def test_auto_is_what_the_oldest_gpu_of_a_cluster_can_do(monkeypatch, kinds, dtype):
    there = {"CPU": 8.0, "GPU": 1.0, **{f"accelerator_type:{kind}": 1.0 for kind in kinds}}
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: there)
    assert cluster.gpus_dtype() == dtype


def test_a_cluster_that_is_not_there(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets it, and nobody answers
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
        with pytest.raises(UserError, match=f"cluster.address {address}: no Ray cluster there: Connection refused"):
            cluster.connected(address).__enter__()


def test_rays_own_handlers_alone_are_quieted(monkeypatch):
    import ray.data  # noqa: F401 (its logger has its handlers from here on)

    logger = logging.getLogger("ray.data")
    [rays] = [one for one in logger.handlers if one.name == "console"]
    somebodys, file = logging.StreamHandler(io.StringIO()), [one for one in logger.handlers if one.name == "file"]
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, somebodys])
    before = rays.level
    try:
        cluster.quiet_ray_data()
        logger.error("it went wrong")
        assert rays.level > logging.CRITICAL
        assert [one.level for one in (*file, somebodys)] == [logging.NOTSET, logging.NOTSET]
        assert "it went wrong" in somebodys.stream.getvalue()
    finally:
        rays.setLevel(before)
