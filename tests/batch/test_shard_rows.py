"""How large a shard is where the job does not say: by what computes it, what its results take, how much there is."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.models import save_classifier
from tests.tasks.m3 import save_m3
from xlmr_ray.batch import shard_rows as module
from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.input.planning import SHARD_BYTES, plan_shards
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.batch.shard_rows import (
    COPIES,
    EACH,
    MOST,
    RESULT_BYTES,
    RESULT_BYTES_CPU,
    SHARD_ROWS,
    held_bytes,
    minute_bytes,
    shard_bytes,
    shard_rows,
)


def job_of(folder, tasks=("embedding",), asked="auto", cpus=2, gpus=0, path="in.jsonl", monkeypatch=None, **more):
    save_classifier(folder / "model", hidden_size=1024, num_hidden_layers=1, max_position_embeddings=514)
    monkeypatch.setattr(module, "on_gpu", lambda device: gpus > 0)
    monkeypatch.setattr(module, "resources", lambda: Resources((cpus,), (gpus,), 1 << 40))
    content = {
        "name": "shards",
        "model": str(folder / "model"),
        "input": {"path": str(path), **more},
        "tasks": [{"task": task} for task in tasks],
        "output": {"path": "out"},
        "cluster": {"shard_rows": asked},
    }
    return check_job(content, "test")


@pytest.mark.parametrize(
    ("tasks", "asked", "gpus", "rows"),
    [
        (["embedding"], "auto", 0, SHARD_ROWS),
        (["feature-extraction"], 100_000, 1, 100_000),
        (["feature-extraction"], "auto", 1, RESULT_BYTES // (4 * 1024 * 512)),
        (["feature-extraction"], "auto", 0, RESULT_BYTES_CPU // (4 * 1024 * 512)),
        (["embedding", "feature-extraction"], "auto", 1, RESULT_BYTES // (4 * 1024 * 512)),
    ],
)
def test_most_rows_of_a_shard(tmp_path, monkeypatch, tasks, asked, gpus, rows):
    job = job_of(tmp_path, tasks, asked, gpus=gpus, monkeypatch=monkeypatch)
    assert shard_rows(job, task_recipes(job)) == rows


def test_vectors_of_tokens_count_for_the_memory_of_an_encoder(tmp_path):
    """And with it for how many encoders a machine is given: sixteen texts of bge-m3's length are half a gigabyte."""
    job = check_job(
        {
            "model": str(save_m3(tmp_path)),
            "input": {"path": "in.jsonl"},
            "tasks": ["embedding", "sparse", "multi-vector"],
            "output": {"path": "out"},
        },
        "test",
    )
    recipes = task_recipes(job)
    assert held_bytes(recipes, 16) == COPIES * 16 * 64 * 4 * (1 + 48)
    assert held_bytes(recipes[:1], 16) == 0


@pytest.mark.parametrize(("limit", "rows"), [(5, 16), (6400, 200), (10**9, SHARD_ROWS)])
def test_a_limited_job_is_a_small_one(tmp_path, monkeypatch, limit, rows):
    job = job_of(tmp_path, monkeypatch=monkeypatch, limit=limit)
    assert shard_rows(job, task_recipes(job)) == rows


def files(folder, kind, rows):
    """Three files of as many rows, with a column that is not read."""
    folder.mkdir()
    table = pa.table({"text": [f"{at} {'word ' * 50}" for at in range(rows)], "other": ["x" * 50] * rows})
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    for name in "abc":
        if kind == "parquet":
            pq.write_table(table, folder / f"{name}.parquet")
        else:
            (folder / f"{name}.{kind}").write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    return folder


@pytest.mark.parametrize(
    ("kind", "rows", "cpus", "fewest"), [("parquet", 3000, 2, 30), ("jsonl", 3000, 2, 30), ("jsonl", 3000, 4, 60)]
)
def test_an_encoder_has_several_shards_and_not_one_for_a_few_rows(tmp_path, monkeypatch, kind, rows, cpus, fewest):
    job = job_of(tmp_path, path=files(tmp_path / "in", kind, rows), cpus=cpus, monkeypatch=monkeypatch)
    recipes = task_recipes(job)
    columns, inputs = columns_of(job, recipes), find_inputs([str(tmp_path / "in")]).inputs
    size = shard_bytes(job, recipes, columns, inputs)
    shards = list(plan_shards(inputs, shard_rows=SHARD_ROWS, shard_bytes=size, columns=columns))
    assert fewest <= len(shards) <= 2 * fewest
    assert sum(shard.rows for shard in shards) == 3 * rows


@pytest.mark.parametrize(("asked", "bytes"), [(7, SHARD_BYTES), ("auto", None)])
def test_bytes_of_a_shard(tmp_path, monkeypatch, asked, bytes):
    job = job_of(tmp_path, asked=asked, path=files(tmp_path / "in", "jsonl", 10), monkeypatch=monkeypatch)
    recipes = task_recipes(job)
    columns, inputs = columns_of(job, recipes), find_inputs([str(tmp_path / "in")]).inputs
    assert shard_bytes(job, recipes, columns, inputs) == (bytes or module.FEWEST_BYTES_CPU)


@pytest.mark.parametrize(
    ("content", "gpus", "wanted"),
    [
        (1 << 30, 0, "minute"),  # a day's work
        (1 << 33, 0, (1 << 33) // MOST),  # more than a minute each, but no more of them
        (1 << 50, 0, SHARD_BYTES),
        (1 << 28, 8, (1 << 28) // (EACH * 8)),
        (1 << 20, 1, 1 << 20),  # one batch of a GPU
        (12 << 20, 1, (12 << 20) // 8),  # small shards, so fewer of them
        (528 << 10, 0, 32 << 10),
        (1 << 17, 0, 16 << 10),
    ],
)
def test_bytes_follow_the_size_of_the_job(tmp_path, monkeypatch, content, gpus, wanted):
    job = job_of(tmp_path, gpus=gpus, monkeypatch=monkeypatch)
    recipes = task_recipes(job)
    monkeypatch.setattr(module, "content_bytes", lambda *_: content)
    minute = minute_bytes(recipes, module.CPU_SPEED)
    assert (1 << 30) // MOST < minute < (1 << 33) // MOST
    expected = minute if wanted == "minute" else wanted
    assert shard_bytes(job, recipes, columns_of(job, recipes), []) == expected
