"""Adapters of embedders and rerankers: sentence-transformers with peft on its transformer is the oracle, and what it
saves with an adapter is read as it reads it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from tests.models import add_tokenizer, make_config, save_classifier
from xlmr_ray import XLMRobertaTokenizer, pipeline
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.errors import UserError

TEXTS = ["Everyone has the right to life.", "Все люди рождаются свободными.", "<mask> 你好", "word " * 80]
LAYERS: dict[str, Any] = {"target_modules": ["query", "value", "dense"]}
BESIDE = ("merged", "beside")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLMR_RAY_CACHE", str(tmp_path / "cache"))


def embedder(folder: Path, layout: str, pooling: str, width: int | None = 20) -> Path:
    """A folder of sentence-transformers: pooling, a dense layer of so many numbers, vectors of length 1."""
    torch.manual_seed(3)
    ours = make_config()
    if layout == "bert":  # as multilingual-e5-small is
        shape = {name: getattr(ours, name) for name in ("vocab_size", "hidden_size", "intermediate_size")}
        config = transformers.BertConfig(
            **shape, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2
        )
        transformers.BertModel(config).save_pretrained(folder / "encoder")
    else:
        transformers.XLMRobertaModel(ours).save_pretrained(folder / "encoder")
    add_tokenizer(folder / "encoder")
    parts = [modules.Transformer(str(folder / "encoder"), max_seq_length=48), modules.Pooling(48, pooling_mode=pooling)]
    if width is not None:
        parts.append(modules.Dense(48, width, activation_function=torch.nn.Tanh()))
    SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(str(folder / "embedder"))
    return folder / "embedder"


def options(**own: Any) -> Any:
    torch.manual_seed(0)
    return peft.LoraConfig(**{"r": 4, "init_lora_weights": False, "task_type": "FEATURE_EXTRACTION", **LAYERS, **own})


def ours(base: Path, adapter: Path, how: str, task: str = "embedding", texts: Any = TEXTS) -> Any:
    if how == "merged":
        return np.array(pipeline(task, adapter, device="cpu")(texts))
    return np.array(pipeline(task, base, adapters={"one": adapter}, device="cpu")(texts, adapter="one"))


@pytest.mark.parametrize(
    ("layout", "pooling", "own"),
    [
        ("xlm-roberta", "cls", {}),
        ("xlm-roberta", "max", {"bias": "all"}),
        ("bert", "mean", {}),
        ("bert", "cls", {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]}),
    ],
)
def test_over_a_sentence_transformers_folder(tmp_path: Path, layout: str, pooling: str, own: dict[str, Any]) -> None:
    """The adapter's folder has nothing but the adapter: the rest is as the base's says."""
    base = embedder(tmp_path, layout, pooling)
    model = SentenceTransformer(str(base), device="cpu")
    plain = model.encode(TEXTS)
    adapted = peft.get_peft_model(model[0].auto_model, options(**own)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model[0].auto_model = adapted
    wanted = model.encode(TEXTS)
    assert np.abs(wanted - plain).max() > 1e-2
    adapted.save_pretrained(tmp_path / "adapter")
    assert np.abs(ours(base, tmp_path / "adapter", "merged") - wanted).max() < 1e-5
    if "modules_to_save" in own:
        with pytest.raises(UserError, match=r"is another one than the base's; .* set merge: true"):
            ours(base, tmp_path / "adapter", "beside")
    else:
        assert np.abs(ours(base, tmp_path / "adapter", "beside") - wanted).max() < 1e-5


@pytest.mark.parametrize("base_of", ["encoder", "embedder", "older"])
@pytest.mark.parametrize("how", BESIDE)
def test_as_sentence_transformers_saves_one(tmp_path: Path, base_of: str, how: str) -> None:
    """Its folder has modules, lengths, prompts and a tokenizer itself, and takes nothing of these from its base."""
    made = embedder(tmp_path, "xlm-roberta", "cls")
    model = SentenceTransformer(str(made), device="cpu", prompts={"q": "frage: "}, default_prompt_name="q")
    model[0].max_seq_length = 12
    model.add_adapter(options())
    model.eval().save(str(tmp_path / "adapter"))
    wanted = SentenceTransformer(str(tmp_path / "adapter"), device="cpu").encode(TEXTS)
    base = tmp_path / base_of
    if base_of == "embedder":  # which has another pooling and another dense layer
        shutil.rmtree(base)
        embedder(tmp_path, "xlm-roberta", "max", 30)
    elif base_of == "older":  # with its model in a folder inside
        shutil.copytree(tmp_path / "encoder", base / "0_Transformer")
        kinds = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
        kinds.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
        (base / "modules.json").write_text(json.dumps(kinds))
        shutil.copytree(tmp_path / "adapter" / "1_Pooling", base / "1_Pooling")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(base)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    if (base_of, how) == ("older", "beside"):
        with pytest.raises(UserError, match="its model is in a folder inside it: no adapter beside it"):
            ours(base, tmp_path / "adapter", how)
        return
    got = ours(base, tmp_path / "adapter", how)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 1e-5


def test_another_tokenizer(tmp_path: Path) -> None:
    """The adapter's own vocabulary and lengths count, beside the base, too, as transformers takes them."""
    base = embedder(tmp_path, "xlm-roberta", "mean", None)
    shutil.copytree(base, tmp_path / "adapter", ignore=shutil.ignore_patterns("config.json", "*.safetensors", "1_*"))
    (tmp_path / "adapter" / "modules.json").unlink()
    model = SentenceTransformer(str(base), device="cpu")
    adapted = peft.get_peft_model(model[0].auto_model, options()).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    file.write_text(json.dumps(content), "utf-8")
    piece = vocabulary[-1][0]
    own = XLMRobertaTokenizer.from_pretrained(tmp_path / "adapter")
    assert (
        own.convert_tokens_to_ids(piece) == XLMRobertaTokenizer.from_pretrained(base).convert_tokens_to_ids(piece) + 1
    )
    folders = resolve(tmp_path / "adapter"), resolve(f"{base}[adapter={tmp_path / 'adapter'}]")
    for folder in folders:
        assert XLMRobertaTokenizer.from_pretrained(folder).convert_tokens_to_ids(piece) == own.convert_tokens_to_ids(
            piece
        )


@pytest.mark.parametrize("how", BESIDE)
def test_as_a_cross_encoder_is_saved(tmp_path: Path, how: str) -> None:
    """With its function, prompt and length, and the head that was trained with it."""
    base = save_classifier(tmp_path / "base", num_labels=1)
    settings: dict[str, Any] = {"prompts": {"q": "Frage: "}, "default_prompt_name": "q", "max_length": 32}
    model = CrossEncoder(str(base), device="cpu", activation_fn=torch.nn.Tanh(), **settings)
    model.model.add_adapter(options(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"]))
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval().save_pretrained(str(tmp_path / "adapter"))
    pairs = [("Wer ist frei?", "alle Menschen " * 30), ("a", "b c"), ("", "x")]
    wanted = CrossEncoder(str(tmp_path / "adapter"), device="cpu").predict(pairs)
    texts = [{"text": one, "text_pair": other} for one, other in pairs]
    assert np.abs(ours(base, tmp_path / "adapter", how, "rerank", texts) - wanted).max() < 1e-5


@pytest.mark.parametrize("path", ["/tmp", "../elsewhere"])
def test_a_module_outside(tmp_path: Path, path: str) -> None:
    base = embedder(tmp_path, "xlm-roberta", "cls")
    model = SentenceTransformer(str(base), device="cpu")
    model.add_adapter(options())
    model.save(str(tmp_path / "adapter"))
    file = tmp_path / "adapter" / "modules.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps([said[0], said[1] | {"path": path}]))
    with pytest.raises(UserError, match=r"modules.json: path .* leads out of the folder"):
        resolve(tmp_path / "adapter")
