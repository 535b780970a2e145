"""A training that was cut short goes on to the same digits; what stops it is said in one line, nothing half is left."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.train.conftest import LANGUAGES, TEXTS, record
from xlmr_ray import JobFailed, UserError
from xlmr_ray.errors import Interrupted
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.loop import Loop
from xlmr_ray.train.rows import held_out, split_rows
from xlmr_ray.train.state import reason
from xlmr_ray.train.steps import TrainSteps, parts_within

ROWS = {"text": TEXTS, "label": LANGUAGES}
JOB = {
    "task": "text-classification",
    "epochs": 3,
    "batch_size": 5,
    "learning_rate": 0.005,
    "dropout": 0.2,
    "validation": {"share": 0.25},
    "early_stopping": {"patience": 5},
}


def stopping(at: int, error: type[BaseException] | None):
    """Ends a training before its step `at`: as a signal does, or with an error, of which nothing is kept."""
    step = Loop.step

    def cut(self, number):
        if number == at and error is not None:
            raise error
        if number == at - 1 and error is None:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    return cut


def noted(done: list[int]):
    """A step that is written down."""
    step = Loop.step

    def noting(self, number):
        done.append(number)
        return step(self, number)

    return noting


@pytest.mark.parametrize("method", ["full", "head", "lora"])
@pytest.mark.parametrize("how", ["^C", "killed"])
def test_the_same_digits(make_checkpoint, train, monkeypatch, method, how):
    folder = make_checkpoint()
    whole = train(ROWS, folder, method=method, output="whole", **JOB)
    steps = len(record(whole)["losses"])
    assert steps == 6
    for at in [3] if method == "lora" else range(1, steps):
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "step", stopping(at, ZeroDivisionError if how == "killed" else None))
            with pytest.raises(ZeroDivisionError if how == "killed" else Interrupted) as stopped:
                train(ROWS, folder, method=method, output=f"cut{at}", checkpoint_every=0, **JOB)
        if how == "^C":
            assert f"after step {at} of {steps}" in str(stopped.value)
        done: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "step", noted(done))
            again = train(ROWS, folder, method=method, output=f"cut{at}", checkpoint_every=0, **JOB)
        assert done == list(range(at, steps))
        for key in ("losses", "history", "best"):
            assert record(again)[key] == record(whole)[key]
        file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
        weights = [load_file(one.folder / file) for one in (whole, again)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert sorted(path.name for path in again.folder.parent.glob(".*")) == []  # what was kept is gone


def test_finished_and_others(make_checkpoint, train):
    folder = make_checkpoint()
    first = train(ROWS, folder, **JOB)
    assert train(ROWS, folder, **JOB).progress is None
    with pytest.raises(UserError, match="made by another training"):
        train(ROWS, folder, **{**JOB, "seed": 1})
    with pytest.raises(UserError, match="made by another training"):
        train({"text": TEXTS, "label": LANGUAGES[::-1]}, folder, **JOB)
    (first.folder / "training.json").unlink()
    with pytest.raises(UserError, match="no training made it"):
        train(ROWS, folder, **JOB)


def test_no_number(make_checkpoint, train, monkeypatch):
    """A loss that is no number ends it before the weights are."""
    loss = Loop.loss

    def broken(self, part, chosen):
        found, raw = loss(self, part, chosen)
        return (found * float("nan") if self.progress.step == 2 else found), raw

    monkeypatch.setattr(Loop, "loss", broken)
    with pytest.raises(JobFailed, match=r"step 3 of 6: the loss is nan; give a lower learning_rate") as stopped:
        train(ROWS, make_checkpoint(), **JOB)
    assert "\n" not in str(stopped.value)
    (kept,) = Path(str(stopped.value).rpartition(" ")[2]).glob("state.pt")
    assert torch.load(kept, weights_only=True)["progress"]["step"] == 2


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), JobFailed, "No space left on device"),
        (SafetensorError("I/O error: No space left on device"), JobFailed, "No space left on device"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_the_folder_cannot_be_written(make_checkpoint, train, monkeypatch, tmp_path, error, raised, said):
    """All steps were done: the same command only writes."""
    folder = make_checkpoint()

    def fail(self, *arguments, **more):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(XLMRobertaTokenizer, "save_pretrained", fail)
        with pytest.raises(raised, match=said):
            train(ROWS, folder, **JOB)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", lambda self, number: pytest.fail("all steps were done"))
        (kept,) = (path for path in tmp_path.iterdir() if path.is_dir())  # and not half a folder
        assert kept.name.startswith(".out.")
        assert train(ROWS, folder, **JOB).folder == tmp_path / "out"


def test_no_room_is_said_before_the_training(make_checkpoint, train, monkeypatch, tmp_path):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(Loop, "step", lambda self, number: pytest.fail("there is no room for what it gives"))
    with pytest.raises(JobFailed, match=r"0\.1 MB are free, and what is kept of the training takes [\d.]+ MB; nothing"):
        train(ROWS, make_checkpoint(), **JOB)
    assert not list(tmp_path.glob(".out*"))


def test_a_place_that_cannot_be_written_is_said_before_the_training(make_checkpoint, train, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Loop, "step", lambda self, number: pytest.fail("its place cannot be written"))
    with pytest.raises(JobFailed, match=r"cannot be written .*; nothing was trained"):
        train(ROWS, make_checkpoint(), output="file/out", **JOB)


def test_what_another_version_kept_is_not_gone_on_with(make_checkpoint, train, monkeypatch):
    """A step may draw other numbers there, so the digits would be those of neither."""
    folder = make_checkpoint()
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", stopping(4, None))
        with pytest.raises(Interrupted):
            train(ROWS, folder, **JOB)
    monkeypatch.setattr("xlmr_ray.train.state.VERSION", 3)
    with pytest.raises(JobFailed, match=r"state\.pt: was kept by another version of xlmr_ray; remove it to begin anew"):
        train(ROWS, folder, **JOB)


def test_why_torch_could_not_write():
    """Its own error names a position in the file, and follows the system's."""

    def save() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError) as raised:
        save()
    assert reason(raised.value) == "No space left on device"
    assert reason(RuntimeError("two\nlines")) == "two lines"


def test_the_command(make_checkpoint, tmp_path):
    """Through the command, from JSONL, stopped by a signal: one line, exit code 130, and the same command ends it."""
    folder = make_checkpoint()
    rows = "".join(json.dumps({"text": t, "lang": y}) + "\n" for t, y in zip(TEXTS, LANGUAGES, strict=True))
    (tmp_path / "rows.jsonl").write_text(rows * 10)
    job = {
        "model": str(folder),
        "task": "text-classification",
        "train": {"path": str(tmp_path / "rows.jsonl"), "label": "lang"},
        "output": {"path": str(tmp_path / "out")},
        "epochs": 6,
        "batch_size": 4,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "xlmr_ray", "finetune", str(tmp_path / "job.yaml")]
    said = tmp_path / "said"
    with said.open("w") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        while "120 examples" not in said.read_text() and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=120)
    assert running.returncode == 130, said.read_text()
    assert said.read_text().count("stopped") == 1
    assert "Traceback" not in said.read_text()
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoint" in done.stdout
    assert (tmp_path / "out" / "config.json").exists()


def test_steps_follow_from_the_seed():
    steps = TrainSteps.of(10, 4, 2.5, seed=3)
    assert (steps.count, steps.an_epoch) == (8, 3)
    first = np.concatenate([steps.chosen(step) for step in range(3)])
    second = np.concatenate([steps.chosen(step) for step in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert [step for step in range(8) if steps.ends_epoch(step)] == [2, 5, 7]


def test_parts_keep_to_the_budget():
    tokens = np.array([5, 30, 7, 100, 12, 1])
    found = list(parts_within(np.array([4, 3, 1, 0]), tokens, 40))
    assert [part.tolist() for part in found] == [[3], [1], [4, 0]]


def test_a_split_keeps_documents_together():
    random = np.random.default_rng(0)
    groups = random.integers(0, 300, 2000)
    languages = groups % 4
    held = held_out(groups, languages, 0.2, seed=0)
    assert not set(groups[held]) & set(groups[~held])
    for language in range(4):
        own = languages == language
        assert held[own].mean() == pytest.approx(0.2, abs=0.02)
    assert (held_out(groups, languages, 0.2, seed=1) != held).any()
    rows = pa.table({"text": ["same"] * 4 + ["other"] * 4, "label": [1] * 8})
    left, right = split_rows(rows, 0.5, 0)
    assert set(left["text"].to_pylist()).isdisjoint(right["text"].to_pylist())
