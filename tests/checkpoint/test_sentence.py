import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.checkpoint.conftest import Make
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.errors import UserError

OLD = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
}


def folder(path: Path, content: dict[str, Any]) -> Path:
    for name, value in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(value))
    return path


def module(kind: str, path: str) -> dict[str, str]:
    return {"path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.fixture
def encoder(make: Make) -> Path:
    path = make()
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=38
    ).save_pretrained(path)
    return path


@pytest.mark.parametrize("mode", ["cls", "mean", "max", "mean_sqrt_len_tokens"])
def test_what_sentence_transformers_writes(encoder: Path, tmp_path: Path, mode: str) -> None:
    torch.manual_seed(0)
    dense = [Dense(32, 16, activation_function=torch.nn.ReLU()), Dense(16, 8, bias=False)]
    steps = [Transformer(str(encoder), max_seq_length=20), Pooling(32, mode), *dense, Normalize()]
    prompts = {"query": "query: ", "document": "passage: "}
    saved = SentenceTransformer(
        modules=steps, prompts=prompts, default_prompt_name="query", truncate_dim=4, device="cpu"
    )
    saved.save(str(tmp_path / "saved"))
    config = read_sentence_config(tmp_path / "saved")
    assert config is not None
    assert config.pooling == mode.removesuffix("_tokens")
    assert (config.max_seq_length, config.do_lower_case, config.include_prompt) == (20, False, True)
    assert (config.prompts, config.default_prompt_name, config.truncate_dim) == (prompts, "query", 4)
    assert config.normalize
    assert [(d.in_features, d.out_features, d.bias, d.activation) for d in config.dense] == [
        (32, 16, True, "ReLU"),
        (16, 8, False, "Tanh"),
    ]
    x = torch.randn(3, 32)
    ours, theirs = x, {"sentence_embedding": x}
    for layer, reference in zip(config.dense, dense, strict=True):
        weight, bias = layer.tensors()
        ours = getattr(torch.nn, layer.activation)()(torch.nn.functional.linear(ours, weight, bias))
        theirs = reference(theirs)
    assert torch.equal(ours, theirs["sentence_embedding"])


def test_the_length_of_the_tokenizer_where_the_module_has_none(encoder: Path, tmp_path: Path) -> None:
    saved = SentenceTransformer(modules=[Transformer(str(encoder)), Pooling(32, "cls")], device="cpu")
    saved.save(str(tmp_path / "saved"))
    config = read_sentence_config(tmp_path / "saved")
    assert config is not None
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert config.max_seq_length == again.max_seq_length == 38
    assert not config.normalize


def test_an_old_folder(tmp_path: Path) -> None:
    assert read_sentence_config(folder(tmp_path, OLD)) == SentenceConfig(
        pooling="mean",
        include_prompt=True,
        max_seq_length=512,
        do_lower_case=False,
        dense=(),
        normalize=False,
        prompts={},
        default_prompt_name=None,
        truncate_dim=None,
        similarity=None,
    )


def test_a_nested_folder(tmp_path: Path) -> None:
    nested = [module("Transformer", "0_Transformer"), *OLD["modules.json"][1:], module("Normalize", "2_Normalize")]
    lower = {"max_seq_length": 128, "do_lower_case": True}
    old = {k: v for k, v in OLD.items() if k != "sentence_bert_config.json"}
    made = folder(tmp_path, old | {"modules.json": nested, "0_Transformer/sentence_xlm-roberta_config.json": lower})
    config = read_sentence_config(made)
    assert config is not None
    assert (config.max_seq_length, config.do_lower_case, config.normalize) == (128, True, True)


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"word_embedding_dimension": 384}, "mean"),
        ({"embedding_dimension": 384, "pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"], "include_prompt": False}, "max"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
    ],
)
def test_pooling(tmp_path: Path, values: dict[str, Any], pooling: str) -> None:
    config = read_sentence_config(folder(tmp_path, OLD | {"1_Pooling/config.json": values}))
    assert config is not None
    assert config.pooling == pooling
    assert config.include_prompt is values.get("include_prompt", True)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode": "attention"}, "attention"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"cls \+ mean"),
    ],
)
def test_pooling_that_is_not_supported(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"1_Pooling/config.json: pooling {named} is not supported; one of cls, mean"):
        read_sentence_config(folder(tmp_path, OLD | {"1_Pooling/config.json": values}))


def test_a_plain_folder_is_none(make: Make) -> None:
    assert read_sentence_config(make()) is None


DENSE = {"in_features": 4, "out_features": 2, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_residual": True}, "use_residual is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings' is not supported"),
        ({"activation_function": "somewhere.Swish"}, "activation somewhere.Swish is not supported"),
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax is not supported"),
        ({"in_features": None}, "expected in_features and out_features"),
        ({"out_features": 3}, r"linear.weight: got shape \(2, 4\), expected shape \(3, 4\)"),
    ],
)
def test_dense_layers_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    modules = [*OLD["modules.json"], module("Dense", "2_Dense")]
    made = folder(tmp_path, OLD | {"modules.json": modules, "2_Dense/config.json": DENSE | changes})
    torch.save({"linear.weight": torch.ones(2, 4), "linear.bias": torch.ones(2)}, made / "2_Dense/pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        [layer.tensors() for layer in read_sentence_config(made).dense]


def test_a_dense_layer_without_weights(tmp_path: Path) -> None:
    modules = [*OLD["modules.json"], module("Dense", "2_Dense")]
    with pytest.raises(UserError, match=r"2_Dense: no weights: looked for model.safetensors, pytorch_model.bin"):
        read_sentence_config(folder(tmp_path, OLD | {"modules.json": modules, "2_Dense/config.json": DENSE}))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("LSTM", "1_LSTM")], "module LSTM is not supported"),
        ([("Pooling", "1_Pooling"), ("Normalize", "2"), ("Dense", "3")], "Transformer, Pooling, Normalize, Dense"),
        ([("Normalize", "1")], "expected Transformer, Pooling, any Dense, then Normalize"),
        ([], "got modules Transformer, expected"),
        ([("Pooling", "../elsewhere")], "leads out of the folder"),
    ],
)
def test_modules_that_are_not_supported(tmp_path: Path, modules: list[tuple[str, str]], message: str) -> None:
    listed = [module("Transformer", ""), *(module(*m) for m in modules)]
    with pytest.raises(UserError, match=message) as e:
        read_sentence_config(folder(tmp_path, OLD | {"modules.json": listed}))
    assert "modules.json" in str(e.value)


def test_a_folder_without_a_transformer(encoder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save_pretrained(str(tmp_path / "static"))
    with pytest.raises(UserError, match=r"modules\.json: its first module is StaticEmbedding, expected Transformer"):
        read_config(tmp_path / "static")


def test_files_that_are_absent_or_broken(tmp_path: Path) -> None:
    made = folder(tmp_path, OLD)
    (made / "1_Pooling/config.json").write_text("{")
    with pytest.raises(UserError, match=r"1_Pooling/config\.json: cannot be read as JSON"):
        read_sentence_config(made)
    shutil.rmtree(made / "1_Pooling")
    with pytest.raises(UserError, match=r"1_Pooling/config\.json: no such file, which modules.json asks for"):
        read_sentence_config(made)
    (made / "modules.json").write_text("{}")
    with pytest.raises(UserError, match="expected a JSON list, got dict"):
        read_sentence_config(made)
    folder(tmp_path, OLD | {"config_sentence_transformers.json": {"prompts": {"q": "q: "}, "default_prompt_name": "p"}})
    with pytest.raises(UserError, match=r"default_prompt_name 'p' is none of the prompts \(q\)"):
        read_sentence_config(made)
