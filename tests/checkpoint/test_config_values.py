"""Damaged configurations: one line that names the file and the key, before anything is made of them."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models import save_classifier, save_e5_layout
from xlmr_ray import UserError, XLMRobertaForSequenceClassification, XLMRobertaModel, pipeline
from xlmr_ray.checkpoint.config_values import CHECKS
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.tasks.registry import task_class

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 10**5, 2**31, 10**30, 0.0, 1.5, -0.5, float("nan"), float("inf")]),
    st.sampled_from(["", "x", "12", "gelu", "float32", "Ünicode", "a\nb"]),
    st.sampled_from(
        [[], [1], ["a"], {}, {"a": 1}, {"0": "a"}, {"x": "y"}, {"0": None}, {"0": 5, "1": 2.5}, [[]], {"0": ["a"]}]
    ),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each layout."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "bert").mkdir()
    return {"xlm-roberta": save_classifier(root / "xlm-r", num_labels=3), "bert": save_e5_layout(root / "bert")}


def one_line(error: UserError, folder: Path) -> None:
    assert "\n" not in str(error)
    assert str(error).startswith((str(folder), "config: ", "hidden_act ")), error


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["xlm-roberta", "bert"]), st.sampled_from(sorted([*CHECKS, "model_type"])), JUNK)
def test_any_damage_is_one_line_or_does_none(folders: dict[str, Path], layout: str, name: str, value: Any) -> None:
    path = folders[layout] / "config.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), name: value}))
        kind = XLMRobertaModel if layout == "bert" else XLMRobertaForSequenceClassification
        task = "embedding" if layout == "bert" else "text-classification"
        try:
            model = kind.from_pretrained(folders[layout])
            config = XLMRobertaConfig.from_dict(read_config(folders[layout]))
            task_class(task).bind(folders[layout], config, {})
        except UserError as error:
            one_line(error, folders[layout])
        else:
            assert all(isinstance(label, str) for label in config.labels)
            with contextlib.suppress(UserError), torch.no_grad():
                model(torch.tensor([[5, 6, 7]]))
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", None, "vocab_size: got None, expected a whole number from 1 to 2147483647"),
        ("id2label", ["a", "b"], "id2label: got ['a', 'b'], expected an object of whole numbers and names, or null"),
        ("id2label", {"x": "a"}, "id2label: got {'x': 'a'}, expected an object of whole numbers and names, or null"),
        ("id2label", {"1": "a", "01": "b"}, "id2label: two names for one label: {'1': 'a', '01': 'b'}"),
        ("num_attention_heads", 7, "hidden_size 48 cannot be split over 7 heads"),
        ("pad_token_id", 10**6, "pad_token_id: got 1000000, expected 0 to "),
        ("max_position_embeddings", 2, "max_position_embeddings: got 2, expected more than pad_token_id + 1, 2"),
    ],
)
def test_what_the_line_says(name: str, value: Any, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["xlm-roberta"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    with pytest.raises(UserError) as raised:
        pipeline("text-classification", model=folder)
    assert str(raised.value).startswith(f"{folder}/config.json: {message}")


def test_a_job_with_a_damaged_configuration_ends_before_ray_starts(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["xlm-roberta"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "id2label": ["a"]}))
    (tmp_path / "in.txt").write_text("a text\n")
    call = ["run", "text-classification", "--model", str(folder), "--input", "in.txt", "--output", "out"]
    code = """
import sys
from xlmr_ray.cli import main
try:
    main()
finally:
    print("ray" in sys.modules and sys.modules["ray"].is_initialized())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, *call], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"xlmr-ray: {folder}/config.json: id2label: got ['a'], expected")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout.strip() == "False"


def test_numbers_as_names_of_labels(tmp_path: Path) -> None:
    """They are names as others, in the table of a job as in Python."""
    folder = save_classifier(tmp_path, num_labels=3)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": 1, "1": 2.5, "2": "b"}, "label2id": {"1": 0, "2.5": 1, "b": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    found = pipeline("text-classification", model=folder, top_k=None).table("a text")["labels"].to_pylist()[0]
    assert sorted(each["label"] for each in found) == ["1", "2.5", "b"]
