"""LoRA adapters beside one encoder: peft's numbers, whatever else is in the batch, and the encoder's weights once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.adapters import save_adapter
from xlmr_ray import XLMRobertaModel, XLMRobertaTokenizer, pipeline
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.identity import encoder_identity
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.joint_batch import CallerSequences, compute_together
from xlmr_ray.engine.runners import TaskSource, load_runners
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import ragged
from xlmr_ray.tasks.registry import bind_task

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "many words " * 40]
CLASSES = "XLMRobertaForSequenceClassification"
# Labels, and what peft is asked for.
KINDS: dict[str, dict[str, Any]] = {
    "usual": {"num_labels": 3},
    "rslora, all linear layers": {"num_labels": 2, "r": 3, "lora_alpha": 5, "use_rslora": True,
                                  "target_modules": ["query", "key", "value", "dense"]},
    "patterns": {"r": 4, "rank_pattern": {"query": 2}, "alpha_pattern": {"layer.0.attention.self.value": 32}},
    "biases": {"num_labels": 3, "bias": "all", "target_modules": ["query", "dense"]},
    "biases of its layers": {"bias": "lora_only"},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLMR_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def adapted(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Any]]:
    """The folder of an adapter of each kind, and its model in peft."""
    folder = tmp_path_factory.mktemp("adapters")
    models = {
        kind: save_adapter(CLASSES, mini, folder / kind, seed, task_type="SEQ_CLS", **options)
        for seed, (kind, options) in enumerate(KINDS.items())
    }
    return {kind: folder / kind for kind in KINDS}, models


def scores(model: Any, tokenizer: XLMRobertaTokenizer) -> list[list[float]]:
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return logits.softmax(-1).tolist()


def test_classification_as_peft_has_it(mini: Path, adapted: Any) -> None:
    folders, models = adapted
    pipe = pipeline("text-classification", mini, adapters=folders, top_k=None, dtype="float32", device="cpu")
    tokenizer = XLMRobertaTokenizer.from_pretrained(mini)
    for kind, model in models.items():
        wanted = scores(model, tokenizer)
        for answer, one in zip(pipe(TEXTS, adapter=kind), wanted, strict=True):
            by_label = {label["label"]: label["score"] for label in answer}
            assert [by_label[label] for label in pipe.adapters[kind].config.labels] == pytest.approx(one, abs=1e-5)
        with model.disable_adapter():
            assert np.abs(np.array(wanted) - scores(model, tokenizer)).max() > 1e-3
    with pytest.raises(UserError, match="name one of usual, "):
        pipe(TEXTS)


def test_vectors_as_peft_has_them(mini: Path, tmp_path: Path) -> None:
    wanted = {}
    for seed, name in enumerate("ab"):
        model = save_adapter("XLMRobertaModel", mini, tmp_path / name, seed, task_type="FEATURE_EXTRACTION")
        tokenizer = XLMRobertaTokenizer.from_pretrained(mini)
        with torch.no_grad():
            hidden = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
        wanted[name] = torch.nn.functional.normalize(torch.stack(hidden)).numpy()
    pipe = pipeline("embedding", mini, adapters={name: tmp_path / name for name in "ab"}, pooling="mean",
                    normalize=True, dtype="float32", device="cpu")  # fmt: skip
    for name, vectors in wanted.items():
        np.testing.assert_allclose(pipe(TEXTS, adapter=name), vectors, atol=1e-5)
    assert np.abs(wanted["a"] - wanted["b"]).max() > 1e-2
    weights = {id(one.engine.model) for one in pipe.adapters.values()}
    assert len(weights) == 1


def test_a_batch_of_several_as_each_alone(mini: Path, adapted: Any) -> None:
    folders, _ = adapted
    names = [f"{mini}[adapter={folder}]" for folder in list(folders.values())[:3]]
    places = [mini, *map(resolve, names)]
    assert len({encoder_identity(place) for place in places}) == 1
    tokenizer = XLMRobertaTokenizer.from_pretrained(mini)
    tasks = [bind_task("text-classification", place, {"top_k": None}) for place in places]
    sources = [TaskSource(task, place, "one") for task, place in zip(tasks, places, strict=True)]
    (loaded,) = load_runners(sources, EngineSettings(device="cpu", dtype="float32"))
    engine = loaded.runner
    assert isinstance(engine, Engine)
    table = tasks[0].prepare(pa.table({"text": TEXTS}), tokenizer)
    ids, splits = ragged(table["input_ids"])
    orders = [(0, 1, 2, 3), (3, 1, 0, 2, 1, 3), (2, 0)]
    alone = [engine.run(table["input_ids"], tasks=[head]).raw[0] for head in range(4)]
    for order in orders:
        callers = [CallerSequences(engine.tasks[head], head, ids, np.diff(splits)) for head in order]
        for head, got in zip(order, compute_together(engine, callers), strict=True):
            assert np.array_equal(got, alone[head])
    for head, output in enumerate(engine.results([table] * 4)):
        assert np.array_equal(output.raw, alone[head])


def test_a_language_model_s_last_layer(mini: Path, tmp_path: Path) -> None:
    """The encoder's word embeddings do for it where they are equal; one that was trained has to be merged."""
    options = {"target_modules": ["query"], "modules_to_save": ["lm_head"]}
    model = save_adapter("XLMRobertaForMaskedLM", mini, tmp_path / "tied", **options)
    text = "Everyone has the right to <mask>."
    tokenizer = XLMRobertaTokenizer.from_pretrained(mini)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0, inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)]
    pipe = pipeline("fill-mask", mini, adapters={"one": tmp_path / "tied"}, dtype="float32", device="cpu")
    assert [one["score"] for one in pipe(text)] == pytest.approx(logits.softmax(-1).topk(5).values.tolist(), abs=1e-5)
    shutil.copytree(tmp_path / "tied", tmp_path / "trained")
    weights = load_file(tmp_path / "tied" / "adapter_model.safetensors")
    weights["base_model.model.lm_head.decoder.weight"] *= 2
    save_file(weights, tmp_path / "trained" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="another one than the word embeddings"):
        resolve(f"{mini}[adapter={tmp_path / 'trained'}]")


def test_what_has_to_be_merged(mini: Path, tmp_path: Path) -> None:
    save_adapter(CLASSES, mini, tmp_path / "words", task_type="SEQ_CLS", target_modules=["word_embeddings"])
    with pytest.raises(UserError, match="is no linear layer as the others; set merge: true"):
        resolve(f"{mini}[adapter={tmp_path / 'words'}]")
    save_adapter(CLASSES, mini, tmp_path / "norms", task_type="SEQ_CLS", modules_to_save=["LayerNorm", "classifier"])
    with pytest.raises(UserError, match="beside it only linear layers are: set merge: true"):
        resolve(f"{mini}[adapter={tmp_path / 'norms'}]")
    save_adapter(CLASSES, mini, tmp_path / "usual", task_type="SEQ_CLS")
    name = f"{mini}[adapter={tmp_path / 'usual'}]"
    with pytest.raises(UserError, match="an adapter beside its base"):
        XLMRobertaModel.from_pretrained(name)
    with pytest.raises(UserError, match="its base has an adapter beside it already"):
        resolve(f"{name}[adapter={tmp_path / 'usual'}]")
    task = bind_task("text-classification", resolve(name), {})
    with pytest.raises(UserError, match="quantization int8: not with adapters beside the encoder"):
        load_runners([TaskSource(task, resolve(name), "one")], EngineSettings(quantization="int8", device="cpu"))
    with pytest.raises(UserError, match="no folder on this machine with an adapter"):
        resolve(f"{mini}[adapter={tmp_path}]")
