"""Configurations that are well-formed and not of the weights beside them: said before a cluster or an engine starts,
and only where transformers would make weights anew.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import add_tokenizer, make_config, save_classifier, save_e5_layout
from tests.tasks.m3 import save_m3
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.run import run_job
from xlmr_ray.engine.unloaded import check_weights
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.tasks.registry import bind_task

CLASSES = {
    "text-classification": transformers.XLMRobertaForSequenceClassification,
    "token-classification": transformers.XLMRobertaForTokenClassification,
    "question-answering": transformers.XLMRobertaForQuestionAnswering,
    "multiple-choice": transformers.XLMRobertaForMultipleChoice,
    "fill-mask": transformers.XLMRobertaForMaskedLM,
    "text-generation": transformers.XLMRobertaForCausalLM,
    "feature-extraction": transformers.XLMRobertaModel,
    "embedding": transformers.BertModel,  # in e5's layout
}
# Beside each value that is right in all of the folders, others.
SIZES = {
    "hidden_size": [24, 44, 48, 52, 768],
    "vocab_size": [2, 1000, 250002],
    "num_hidden_layers": [0, 1, 2, 3, 24],
    "intermediate_size": [1, 63, 64, 65, 3072],
    "type_vocab_size": [1, 2, 3],
    "max_position_embeddings": [4, 64, 65, 66, 514],
    "id2label": [{str(n): f"name {n}" for n in range(count)} for count in (1, 2, 3, 5)],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each task; one as a .bin file."""
    made = {}
    for task, kind in CLASSES.items():
        folder = made[task] = tmp_path_factory.mktemp(task)
        if task == "embedding":
            save_e5_layout(folder)
            continue
        model = kind(make_config(num_labels=3, is_decoder=task == "text-generation"))
        model.save_pretrained(folder)
        add_tokenizer(folder)
        if task == "token-classification":
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
    return made


def tried(task: str, folder: Path) -> UserError | None:
    try:
        check_weights(bind_task(task, folder, {}), folder)
    except UserError as error:
        return error
    return None


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(CLASSES)),
    st.sampled_from(sorted(SIZES)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(SIZES[name]))),
)
def test_what_does_not_fit_is_what_transformers_makes_anew(
    folders: dict[str, Path], task: str, change: tuple[str, Any]
) -> None:
    path = folders[task] / "config.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(whole), change[0]: change[1]}))
        error = tried(task, folders[task])
        _, info = CLASSES[task].from_pretrained(folders[task], output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        path.write_text(whole)
    anew = {name for name, *_ in info["mismatched_keys"]} | {*info["missing_keys"]}
    assert (error is not None) == bool(anew), (error, anew)
    if error is not None:
        assert str(error).startswith(f"{folders[task]}/"), error
        assert "\n" not in str(error)
        assert ": got " in str(error)
        assert ", expected " in str(error)
        named = str(error).removeprefix(f"{folders[task]}/").split(": ")[1]
        ours = {name.removeprefix("roberta.").removeprefix("bert.") for name in anew}
        assert named.removeprefix("roberta.").removeprefix("bert.") in ours


def spoiled(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


def test_a_job_and_a_service_say_it_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **more: object) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(ray, "init", started)
    folder = spoiled(save_classifier(tmp_path / "model", num_labels=3), vocab_size=1000)
    (tmp_path / "in.txt").write_text("a text\n")
    job = {
        "model": str(folder),
        "input": {"path": str(tmp_path / "in.txt")},
        "tasks": ["text-classification"],
        "output": {"path": str(tmp_path / "out")},
    }
    said = rf"^{folder}/model.safetensors: roberta.embeddings.word_embeddings.weight: got shape \(\d+, 48\), "
    said += r"expected \(1000, 48\); its config.json is another model's$"
    with pytest.raises(UserError, match=said):
        run_job(check_job(job, "job"), quiet=True)
    with pytest.raises(UserError, match=said):
        check_models(
            ServeSettings.model_validate({"models": [{"model": str(folder), "tasks": ["text-classification"]}]})
        )
    with pytest.raises(UserError, match=said):
        pipeline("text-classification", folder)


def test_a_task_that_the_checkpoint_has_no_head_for(tmp_path: Path) -> None:
    error = tried("question-answering", save_classifier(tmp_path))
    assert str(error).startswith(f"{tmp_path}/model.safetensors: qa_outputs.weight: got no such tensor, expected shape")


def test_fewer_layers_than_the_files_have_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers, it loads; a job's user is told before the cluster starts."""
    assert tried("text-classification", spoiled(save_classifier(tmp_path), num_hidden_layers=1)) is None
    assert "encoder tensors that config.json does not provide for" in caplog.text


def test_layers_over_token_states_and_behind_the_pooling(tmp_path: Path) -> None:
    folder = save_m3(tmp_path)
    shutil.copytree(folder, tmp_path / "narrow")
    torch.save(torch.nn.Linear(24, 1).state_dict(), tmp_path / "narrow" / "sparse_linear.pt")
    torch.save(torch.nn.Linear(24, 48).state_dict(), tmp_path / "narrow" / "colbert_linear.pt")
    for task in ("sparse", "multi-vector"):
        assert tried(task, folder) is None
        assert "got shape" in str(tried(task, tmp_path / "narrow"))
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "dense").mkdir()
    sizes = {"in_features": 24, "out_features": 16, "bias": True}
    (folder / "dense" / "config.json").write_text(json.dumps(sizes))
    layer = torch.nn.Linear(24, 16)
    torch.save(
        {f"linear.{name}": value for name, value in layer.state_dict().items()}, folder / "dense" / "pytorch_model.bin"
    )
    for task in ("embedding", "sentence-similarity"):
        error = tried(task, folder)
        assert f"{folder}/dense/config.json: in_features: got 24, expected 48" in str(error)
