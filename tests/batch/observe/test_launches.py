"""What a launch says of itself, and what it must not."""

import json

import pytest

from xlmr_ray.batch.cluster import Sizes
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.observe.code_version import code_version
from xlmr_ray.batch.observe.launches import launches, leave_launch, without_secrets


def test_secrets_are_starred_and_urls_cleaned():
    content = {
        "model": "https://me:pass1@hub.example/model?X-Amz-Signature=pass2",
        "input": {"path": ["s3://bucket/a/", "memory://plain"]},
        "tasks": [{"task": "t", "api_key": "pass3", "top_k": 3, "password": "pass4", "prompt": "a token: b"}],
        "engine": {"max_tokens": 4096, "max_length": "auto"},
    }
    shown = without_secrets(content)
    assert "pass" not in json.dumps(shown).replace("password", "")
    assert shown["model"] == "https://hub.example/model"
    assert shown["input"] == content["input"]
    assert shown["engine"] == content["engine"]
    assert shown["tasks"][0]["top_k"] == 3
    assert shown["tasks"][0]["prompt"] == "a token: b"


def test_a_launch_is_read_as_it_was_left(ray_session, local):
    job = check_job(
        {
            "name": "a",
            "input": {"path": "in"},
            "tasks": [{"task": "text-classification"}],
            "output": {"path": "out"},
            "lineage": {"url": "https://me:pass1@catalogue.example/"},
        },
        "job",
    )
    size = Sizes(encoders=2, encoder_cpus=1, encoder_gpus=0, tokenizers=3, tokenizer_cpus=1, writers=1, threads=1)
    leave_launch(local, "r", job, size)
    [launch] = launches(local, "r")
    assert (launch.encoders, launch.tokenizers, launch.writers) == (2, 3, 1)
    assert launch.nodes
    assert launch.nodes[0].cpus > 0
    assert launch.code == code_version()
    assert launch.job["name"] == "a"
    assert launch.job["lineage"]["url"] == "https://catalogue.example/"
    assert b"pass1" not in b"".join(local.get(entry.key)[0] for entry in local.list("_runs/"))


@pytest.mark.parametrize("found", [code_version()])
def test_the_code_is_named_by_its_version(found):
    assert found.startswith("0.1.0")
