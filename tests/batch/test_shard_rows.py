"""Rows of a shard where the job does not say: by what computes them, and by what their results take."""

import pytest

from tests.models import save_classifier
from tests.tasks.m3 import save_m3
from xlmr_ray.batch import shard_rows as module
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.plan import task_recipes
from xlmr_ray.batch.shard_rows import COPIES, RESULT_BYTES, SHARD_ROWS_CPU, SHARD_ROWS_GPU, held_bytes, shard_rows


@pytest.mark.parametrize(
    ("tasks", "asked", "gpu", "rows"),
    [
        (["embedding"], "auto", False, SHARD_ROWS_CPU),
        (["embedding"], "auto", True, SHARD_ROWS_GPU),
        (["feature-extraction"], 100_000, True, 100_000),
        (["feature-extraction"], "auto", True, RESULT_BYTES // (4 * 1024 * 512)),
        (["embedding", "feature-extraction"], "auto", True, RESULT_BYTES // (4 * 1024 * 512)),
    ],
)
def test_rows_of_a_shard(tmp_path, monkeypatch, tasks, asked, gpu, rows):
    save_classifier(tmp_path / "model", hidden_size=1024, num_hidden_layers=1, max_position_embeddings=514)
    monkeypatch.setattr(module, "on_gpu", lambda device: gpu)
    job = check_job(
        {
            "name": "shards",
            "model": str(tmp_path / "model"),
            "input": {"path": "in.jsonl"},
            "tasks": [{"task": task} for task in tasks],
            "output": {"path": "out"},
            "cluster": {"shard_rows": asked},
        },
        "test",
    )
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
