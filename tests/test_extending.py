"""The examples of docs/extending.md: each block is run as it stands, in the order of its section."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.extending import PAGE, SECTIONS, loaded, package_with, path_of
from xlmr_ray import pipeline
from xlmr_ray.batch.input.readers import READERS
from xlmr_ray.batch.store.open import STORES
from xlmr_ray.model.attention.backends import ATTENTION
from xlmr_ray.serve import app
from xlmr_ray.tasks.registry import TASKS

REGISTRIES: tuple[dict[str, Any], ...] = (ATTENTION, READERS, STORES, TASKS)


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries as they were, afterwards, and the files of the examples forgotten."""
    monkeypatch.setattr(app, "PROTOCOLS", app.PROTOCOLS)
    before = [(registry, dict(registry)) for registry in REGISTRIES]
    modules = set(sys.modules)
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) is None or "extending" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_there_is_a_section_for_each_thing_that_can_be_added() -> None:
    assert list(SECTIONS) == ["A task", "An input format", "An attention back end", "A protocol", "A store"]
    assert all(blocks for blocks in SECTIONS.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example(section: str, undone: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("extending")
    names: dict[str, object] = {}
    for block in SECTIONS[section]:
        if path_of(block) is not None:
            loaded(block, folder)
        else:
            exec(compile(block, f"{PAGE.name}: {section}", "exec"), names)


JOB = """
import base64, json, sys
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.ledger.published import current
from xlmr_ray.batch.ledger.snapshot import DATA, table_files
from xlmr_ray.batch.ledger.verify import verify
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.store.open import open_store

job = json.loads(sys.argv[1])
run_job(check_job(job, "test"), quiet=True)
store = open_store(job["output"]["path"])
assert verify(store).ok
files = [store.get(file.key)[0] for file in table_files(store, current(store).run_id, DATA)]
print(json.dumps([base64.b64encode(file).decode() for file in files]))
"""


def test_a_job_whose_input_attention_and_output_are_the_page_s(tmp_path: Path) -> None:
    """Actors know them, which are other processes: from the package with a line more in each registry."""
    package = package_with(
        tmp_path / "package",
        {
            "An input format": ("batch/input/readers/__init__.py", 'READERS["paragraphs"] = Paragraphs()'),
            "An attention back end": (
                "model/attention/backends.py",
                'ATTENTION["by_head"] = over_layouts(dense_by_head)',
            ),
            "A store": ("batch/store/open.py", 'STORES["sqlite"] = open_sqlite'),
        },
    )
    texts = [f"line of {number}\nand a second one" for number in range(7)]
    (tmp_path / "in.par").write_text("".join(f"{text}\n==\n" for text in texts), "utf-8")
    job = {
        "model": "embedded:mini",
        "input": {"path": str(tmp_path / "in.par"), "paragraphs": {"end": "=="}},
        "tasks": ["text-classification"],
        "output": {"path": f"sqlite://{tmp_path}/out.db"},
        "engine": {"attn_implementation": "by_head", "dtype": "float32"},
        "cluster": {"address": "local", "encoders": 1, "tokenizers": 1, "shard_rows": 4},
    }
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", JOB, json.dumps(job)],
        env={**environment, "PYTHONPATH": str(package)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [base64.b64decode(file) for file in json.loads(done.stdout.splitlines()[-1])]
    rows = [row for file in files for row in pq.read_table(io.BytesIO(file)).to_pylist()]
    expected = pipeline("text-classification", "embedded:mini", dtype="float32")(texts)
    assert [(row["row"], row["label"]) for row in rows] == [(i, one["label"]) for i, one in enumerate(expected)]
    assert [row["score"] for row in rows] == pytest.approx([one["score"] for one in expected], abs=1e-5)
