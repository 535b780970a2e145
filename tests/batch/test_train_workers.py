"""A training on two workers of a Ray cluster: one worker's losses."""

import json
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tests.models import save_classifier
from tests.train.conftest import LANGUAGES, TEXTS
from xlmr_ray import JobFailed, UserError, pipeline
from xlmr_ray.batch import train_workers
from xlmr_ray.batch.cluster import Resources
from xlmr_ray.batch.input.whole import read_whole
from xlmr_ray.batch.train_workers import scaling_of, train_on_workers
from xlmr_ray.text.progress_line import ProgressLine
from xlmr_ray.train.finetune import finetune
from xlmr_ray.train.job import check_finetune_job


def test_the_losses_of_one_worker(ray_session, tmp_path):
    folder = save_classifier(tmp_path / "model", num_labels=3)
    pq.write_table(pa.table({"text": TEXTS, "label": LANGUAGES}), tmp_path / "rows.parquet")
    job = {
        "model": str(folder),
        "task": "text-classification",
        "train": {"path": str(tmp_path / "rows.parquet")},
        "validation": {"share": 0.25},
        "epochs": 3,
        "batch_size": 5,
        "learning_rate": 0.01,
        "dropout": 0.0,
        "early_stopping": {"metric": "loss", "patience": 3},
    }
    line = ProgressLine(Console(stderr=True), "steps", quiet=True)

    def trained(name, **more):
        checked = check_finetune_job({**job, "output": {"path": str(tmp_path / name)}, **more}, "job")
        outcome = finetune(checked, read_whole, line, train_on_workers)
        return json.loads((outcome.folder / "training.json").read_text("utf-8"))

    alone = trained("one")
    assert len(alone["losses"]) == 6
    together = trained("two", cluster={"workers": 2})
    np.testing.assert_allclose(together["losses"], alone["losses"], rtol=0, atol=1e-4)
    assert together["best"] == alone["best"]
    for mine, theirs in zip(together["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    answers = [pipeline("text-classification", tmp_path / name)(TEXTS) for name in ("one", "two")]
    np.testing.assert_allclose(*([one["score"] for one in own] for own in answers), atol=1e-3)
    assert not list(tmp_path.glob(".*"))  # what was kept is gone


def kill_a_worker(folder: Path) -> None:
    """As soon as something of a training is kept below the folder."""
    while not list(folder.glob(".*/state.pt")):
        time.sleep(0.002)
    own = psutil.Process().children(recursive=True)  # and nobody else's on this machine
    next(one for one in own if "RayTrainWorker" in " ".join(one.cmdline())).send_signal(signal.SIGKILL)


def test_a_killed_worker(ray_session, tmp_path):
    """The training ends with one line, and the same job goes on from what was kept, to the losses of one worker."""
    folder = save_classifier(tmp_path / "model", num_labels=3)
    pq.write_table(pa.table({"text": TEXTS, "label": LANGUAGES}), tmp_path / "rows.parquet")
    line = ProgressLine(Console(stderr=True), "steps", quiet=True)

    def trained(name, workers):
        job = {
            "model": str(folder),
            "task": "text-classification",
            "train": {"path": str(tmp_path / "rows.parquet")},
            "epochs": 40,
            "batch_size": 5,
            "learning_rate": 1e-4,
            "dropout": 0.0,
            "checkpoint_every": 0,
            "output": {"path": str(tmp_path / name)},
            "cluster": {"workers": workers},
        }
        outcome = finetune(check_finetune_job(job, "job"), read_whole, line, train_on_workers)
        return json.loads((outcome.folder / "training.json").read_text("utf-8"))["losses"]

    alone = trained("one", 1)
    assert len(alone) > 80
    thread = threading.Thread(target=kill_a_worker, args=(tmp_path,), daemon=True)
    thread.start()
    with pytest.raises(JobFailed) as stopped:
        trained("two", 2)
    said = r"cluster\.workers: the training ended after step (\d+): .+; what was kept is in .+, the same command"
    step = re.match(said, str(stopped.value))
    assert step, stopped.value
    assert int(step[1]) < len(alone)
    assert "\n" not in str(stopped.value)
    together = trained("two", 2)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_too_few(monkeypatch):
    monkeypatch.setattr(train_workers, "cluster_resources", lambda: Resources((2.0, 4.0), (0.0, 1.0), 0.0))
    with pytest.raises(UserError, match=r"cluster\.workers: 7, but the cluster has 6 CPUs"):
        scaling_of(7, gpu=False)
    with pytest.raises(UserError, match=r"cluster\.workers: 2, but the cluster has 1 GPU; give fewer"):
        scaling_of(2, gpu=True)
    assert scaling_of(2, gpu=False).resources_per_worker == {"CPU": 2}
    assert scaling_of(3, gpu=False).resources_per_worker == {"CPU": 2}
    assert scaling_of(6, gpu=False).resources_per_worker == {"CPU": 1}
