"""A new task is one file and one line of the registry: that of docs/extending.md gives transformers' counts through
Python, a batch job and HTTP, with the package as it is but for these two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import transformers

from tests.extending import package_with
from xlmr_ray import result_files

TEXTS = ["Guten Tag", "Everyone has the right to life.", "人人生而自由", "long " * 300]
SCRIPT = """
import json, sys
from fastapi.testclient import TestClient
from xlmr_ray import pipeline
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.run import run_job
from xlmr_ray.serve.app import build_app
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings

texts, source, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
task = {"task": "token-count", "max_length": 100}
answers = pipeline("token-count", "embedded:mini", max_length=100)(texts)

model = {"model": "embedded:mini", "tasks": [task]}
service = Service.load(ServeSettings.model_validate({"models": [model], "engine": {"threads": 1}}))
client = TestClient(build_app(service, service.settings))
over_http = client.post("/tasks/token-count", json={"inputs": texts}).json()
shorter = client.post("/tasks/token-count", json={"inputs": texts[1], "parameters": {"max_length": 4}}).json()
card = client.get("/tasks/token-count/info").json()["tasks"][0]
service.close()

job = {"model": "embedded:mini", "input": {"path": source}, "tasks": [task], "output": {"path": out}}
run_job(check_job({**job, "cluster": {"address": "local", "encoders": 1, "tokenizers": 1}}, "test"), quiet=True)
print(json.dumps([answers, over_http, shorter, card["task"]]))
"""


def test_through_python_a_job_and_http(tmp_path: Path, mini: Path) -> None:
    package = package_with(tmp_path / "package", {"A task": ("tasks/registry.py", 'TASKS["token-count"] = TokenCount')})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(TEXTS), str(tmp_path / "in.jsonl"), str(tmp_path / "out")],
        env={**environment, "PYTHONPATH": str(package)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, over_http, shorter, name = json.loads(done.stdout.splitlines()[-1])

    tokenizer = transformers.AutoTokenizer.from_pretrained(mini)
    expected = [min(len(ids), 100) for ids in tokenizer(TEXTS)["input_ids"]]
    assert [one["tokens"] for one in answers] == [one["tokens"] for one in over_http] == expected
    assert (shorter, name) == ({"tokens": 4}, "token-count")
    rows = pq.read_table(result_files(str(tmp_path / "out"))).to_pylist()
    assert [(row["tokens"], row["truncated"]) for row in rows] == [(count, count == 100) for count in expected]
