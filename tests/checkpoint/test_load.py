import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tests.checkpoint.conftest import SIZES, Make, reference, same
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.tensors import open_tensors
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.modeling import xlm_roberta as modeling

SEQ = "XLMRobertaForSequenceClassification"
MLM = "XLMRobertaForMaskedLM"
BARE = "XLMRobertaModel"


def load(folder: Path, kind: str = BARE, *, init: bool = False, **options: Any) -> tuple[nn.Module, LoadReport]:
    config = XLMRobertaConfig.from_dict(read_config(folder))
    with torch.device("meta"):
        model = getattr(modeling, kind)(config)
    if init:
        options["init"] = model.init_weights
    return model, load_tensors(model, folder, **options)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}


class Choice(nn.Module):
    """Multiple choice: the one head that stands on the pooler."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.roberta = modeling.XLMRobertaModel(config)
        self.classifier = nn.Linear(config.hidden_size, 1)


class Tokens(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.roberta = modeling.XLMRobertaModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))


@pytest.mark.parametrize("kind", [BARE, SEQ, MLM])
def test_every_tensor_comes_as_transformers_saved_it(make: Make, kind: str) -> None:
    model, report = load(make(kind), kind)
    same(state(model), state(reference(kind)))
    assert (report.missing, report.unexpected, report.ignored, report.mismatched) == ((), (), (), ())
    assert report.dtype == report.dtype_on_disk == torch.float32
    assert report.prefix == ("" if kind == BARE else "roberta.")


@pytest.mark.parametrize(
    ("kind", "ours"), [("XLMRobertaForTokenClassification", Tokens), ("XLMRobertaForMultipleChoice", Choice)]
)
def test_other_heads(make: Make, kind: str, ours: type[nn.Module]) -> None:
    folder = make(kind)
    with torch.device("meta"):
        model = ours(XLMRobertaConfig.from_dict(read_config(folder)))
    load_tensors(model, folder)
    same(state(model), state(reference(kind)))


@pytest.mark.parametrize("prefix", ["", "roberta.", "xlm-roberta.", "xlm_roberta.", "camembert."])
@pytest.mark.parametrize("kind", [BARE, SEQ])
def test_prefixes(make: Make, prefix: str, kind: str) -> None:
    def rename(name: str) -> str:
        name = name.removeprefix("roberta.")
        return name if name.startswith("classifier.") else prefix + name

    model, report = load(make(SEQ, rename=rename), kind, init=True)
    expected = state(reference(SEQ))
    got = {name: p for name, p in state(model).items() if not name.startswith("pooler.")}
    if kind == BARE:
        expected = {n.removeprefix("roberta."): p for n, p in expected.items() if n.startswith("roberta.")}
        assert report.unexpected == tuple(
            f"classifier.{n}" for n in ("dense.bias", "dense.weight", "out_proj.bias", "out_proj.weight")
        )
    same(got, expected)
    assert report.prefix == prefix


@pytest.mark.parametrize("as_bin", [False, True])
def test_old_names_counters_and_half_precision(make: Make, as_bin: bool) -> None:
    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    counters = {"roberta.embeddings.position_ids": torch.arange(40)[None]}
    folder = make(SEQ, rename=rename, extra=counters, as_bin=as_bin, dtype=torch.float16)
    model, report = load(folder, SEQ)
    same(state(model), {name: p.half() for name, p in state(reference(SEQ)).items()})
    assert report.ignored == ("roberta.embeddings.position_ids",)
    assert report.dtype_on_disk == torch.float16
    wide, report = load(folder, SEQ, dtype=torch.float32)
    same(state(wide), {name: p.half().float() for name, p in state(reference(SEQ)).items()})
    assert (report.dtype_on_disk, report.dtype) == (torch.float16, torch.float32)


def test_mixed_types_on_disk_become_the_narrowest_that_holds_them(make: Make) -> None:
    folder = make()
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: t.bfloat16() if "LayerNorm" in name else t.half() for name, t in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    model, report = load(folder)
    assert report.dtype_on_disk == torch.float32
    same(state(model), {name: t.float() for name, t in mixed.items()})


@pytest.mark.parametrize("as_bin", [False, True])
def test_shards(make: Make, as_bin: bool) -> None:
    folder = make(SEQ)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    base, ending = ("pytorch_model", "bin") if as_bin else ("model", "safetensors")
    weight_map = {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"{base}-{i % 3 + 1:05}-of-00003.{ending}"
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name, at in weight_map.items() if at == file}
        torch.save(part, folder / file) if as_bin else save_file(part, folder / file)
    index = folder / f"{base}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    model, report = load(folder, SEQ)
    same(state(model), state(reference(SEQ)))
    assert len(report.files) == 3

    gone = folder / f"{base}-00002-of-00003.{ending}"
    content = gone.read_bytes()
    gone.unlink()
    with pytest.raises(UserError, match=rf"{gone.name}: no such file, which the index names"):
        load(folder, SEQ)
    gone.write_bytes(content)
    index.write_text(json.dumps({"weight_map": weight_map | {"roberta.extra": gone.name}}))
    with pytest.raises(UserError, match=rf"{gone.name}: no tensor 'roberta.extra'"):
        load(folder, SEQ)
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "../../other.safetensors"}}))
    with pytest.raises(UserError, match="no plain file name"):
        load(folder, SEQ)


def test_files_of_old_torch(make: Make) -> None:
    folder = make(as_bin=True)
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model, _ = load(folder)
    same(state(model), tensors)


def test_no_pooler_is_made_anew_and_said(make: Make) -> None:
    folder = make(rename=lambda name: None if name.startswith("pooler.") else name)
    model, report = load(folder, init=True)
    assert report.missing == ("pooler.dense.weight", "pooler.dense.bias")
    weight = state(model)["pooler.dense.weight"]
    assert 0.01 < weight.std() < 0.03
    assert not state(model)["pooler.dense.bias"].any()
    assert "newly initialized: pooler.dense.weight" in str(report)


def test_multiple_choice_needs_its_pooler(make: Make) -> None:
    folder = make("XLMRobertaForMultipleChoice", rename=lambda n: None if "pooler" in n else n)
    with torch.device("meta"):
        model = Choice(XLMRobertaConfig.from_dict(read_config(folder)))
    with pytest.raises(
        UserError,
        match=r"model.safetensors: roberta.pooler.dense.weight: got no such tensor, expected shape \(32, 32\)",
    ):
        load_tensors(model, folder)
    report = load_tensors(model, folder, new_head=True)
    assert report.missing == ("roberta.pooler.dense.weight", "roberta.pooler.dense.bias")


@pytest.mark.parametrize("kept", [{"lm_head.bias"}, {"lm_head.decoder.bias"}, {"lm_head.bias", "lm_head.decoder.bias"}])
@pytest.mark.parametrize("decoder", [False, True])
def test_language_modelling_ties(make: Make, kept: set[str], decoder: bool) -> None:
    theirs = state(reference(MLM))
    extra = {name: theirs["lm_head.bias"].clone() for name in kept}
    if decoder:
        extra["lm_head.decoder.weight"] = theirs["lm_head.decoder.weight"].clone()
    folder = make(MLM, rename=lambda name: None if name == "lm_head.bias" else name, extra=extra)
    model, report = load(folder, MLM)
    same(state(model), theirs)
    assert (report.missing, report.unexpected, report.untied) == ((), (), ())
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert set(report.tied) == {
        ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("lm_head.decoder.bias", "lm_head.bias"),
    }


class HeadFirst(nn.Module):
    """Language modelling with its parts in another order, and two biases that nothing ties but the files' habits."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.lm_head = modeling.LMHead(config)
        self.lm_head.decoder.bias = nn.Parameter(torch.empty_like(self.lm_head.bias))
        self.roberta = modeling.XLMRobertaModel(config, add_pooling_layer=False)
        self.lm_head.decoder.weight = self.roberta.embeddings.word_embeddings.weight


@pytest.mark.parametrize("kept", ["lm_head.bias", "lm_head.decoder.bias"])
def test_ties_whatever_the_order_of_the_parts(make: Make, kept: str) -> None:
    theirs = state(reference(MLM))
    bias = theirs["lm_head.bias"].clone()
    folder = make(MLM, rename=lambda name: None if name == "lm_head.bias" else name, extra={kept: bias})
    with torch.device("meta"):
        model = HeadFirst(XLMRobertaConfig(**SIZES))
    report = load_tensors(model, folder)
    same(state(model), theirs)
    assert report.tied == (("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),)
    assert report.unexpected == ()


def test_word_embeddings_under_the_decoder_alone(make: Make) -> None:
    theirs = state(reference(MLM))
    words = "roberta.embeddings.word_embeddings.weight"
    folder = make(
        MLM,
        rename=lambda name: None if name == words else name,
        extra={"lm_head.decoder.weight": theirs["lm_head.decoder.weight"].clone()},
    )
    same(state(load(folder, MLM)[0]), theirs)


def test_what_the_files_hold_apart_stays_apart(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(MLM, extra={"lm_head.decoder.weight": torch.randn(99, 32)})
    with caplog.at_level(logging.WARNING):
        model, report = load(folder, MLM)
    theirs = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    same(state(model), state(theirs))
    assert report.untied == (("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),)
    assert "differ in the files" in caplog.text


def test_untied_configuration(make: Make) -> None:
    folder = make(MLM, tie_word_embeddings=False)
    same(state(load(folder, MLM)[0]), state(transformers.XLMRobertaForMaskedLM.from_pretrained(folder)))


def test_a_missing_encoder_tensor(make: Make) -> None:
    lost = "roberta.encoder.layer.1.attention.self.key.bias"
    folder = make(SEQ, rename=lambda name: None if name == lost else name)
    for options in ({}, {"new_head": True, "ignore_mismatched_sizes": True}):
        with pytest.raises(
            UserError, match=rf"model\.safetensors: {lost}: got no such tensor, expected shape \(32,\)"
        ) as e:
            load(folder, SEQ, **options)
        assert "\n" not in str(e.value)


def test_a_missing_head(make: Make) -> None:
    folder = make(MLM)
    with pytest.raises(
        UserError,
        match=r"classifier.dense.weight: got no such tensor, expected shape \(32, 32\); the files have lm_head",
    ):
        load(folder, SEQ)
    torch.manual_seed(1)
    model, report = load(folder, SEQ, init=True, new_head=True)
    assert report.missing == tuple(
        f"classifier.{n}" for n in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")
    )
    assert 0.01 < state(model)["classifier.dense.weight"].std() < 0.03
    assert not state(model)["classifier.out_proj.bias"].any()
    theirs = state(reference(MLM))
    for name, tensor in state(model).items():
        if name.startswith("roberta."):
            assert torch.equal(tensor, theirs[name])
    assert set(report.unexpected) == {n for n in load_file(folder / "model.safetensors") if n.startswith("lm_head")}


def test_wrong_shapes(make: Make) -> None:
    folder = make(SEQ, num_labels=5)
    config = XLMRobertaConfig(**SIZES)
    with torch.device("meta"):
        model = modeling.XLMRobertaForSequenceClassification(config)
    with pytest.raises(UserError, match=r"classifier.out_proj.weight: got shape \(5, 32\), expected \(3, 32\)"):
        load_tensors(model, folder)
    report = load_tensors(model, folder, ignore_mismatched_sizes=True, init=model.init_weights)
    assert report.mismatched == ("classifier.out_proj.weight", "classifier.out_proj.bias")
    assert report.unexpected == ()
    assert torch.equal(
        state(model)["classifier.dense.weight"], state(reference(SEQ, num_labels=5))["classifier.dense.weight"]
    )
    with torch.device("meta"):
        model = modeling.XLMRobertaForSequenceClassification(
            XLMRobertaConfig(**SIZES | {"max_position_embeddings": 41})
        )
    for options in ({}, {"new_head": True, "ignore_mismatched_sizes": True}):
        with pytest.raises(UserError, match=r"position_embeddings.weight: got shape \(40, 32\), expected \(41, 32\)"):
            load_tensors(model, folder, **options)


def test_more_layers_than_the_configuration_has(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(num_hidden_layers=3)
    with torch.device("meta"):
        model = modeling.XLMRobertaModel(XLMRobertaConfig(**SIZES))
    with caplog.at_level(logging.WARNING):
        report = load_tensors(model, folder)
    assert len(report.unexpected) == 16
    assert "encoder.layer.2.attention.output.LayerNorm.bias" in caplog.text


def test_a_head_alone(make: Make) -> None:
    folder = make(SEQ)
    with torch.device("meta"):
        head = nn.ModuleDict({"classifier": modeling.ClassificationHead(XLMRobertaConfig(**SIZES))})
    report = load_tensors(head, folder)
    assert report.loaded == 4
    assert torch.equal(head["classifier"].dense.weight, state(reference(SEQ))["classifier.dense.weight"])


def test_a_module_off_the_meta_device_and_frozen_parameters(make: Make) -> None:
    folder = make(SEQ)
    model = modeling.XLMRobertaForSequenceClassification(XLMRobertaConfig(**SIZES))
    model.roberta.requires_grad_(False)
    load_tensors(model, folder)
    same(state(model), state(reference(SEQ)))
    assert not any(p.requires_grad for p in model.roberta.parameters())
    assert all(p.requires_grad for p in model.classifier.parameters())


def test_loaded_tensors_outlive_the_file(make: Make) -> None:
    folder = make()
    model, _ = load(folder)
    file = folder / "model.safetensors"
    with file.open("r+b") as f:
        f.write(b"\0" * file.stat().st_size)
    same(state(model), state(reference()))


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda n: "bert." + n, r"begin with 'bert\.', and config.json's model_type is xlm-roberta"),
        (lambda n: "module.roberta." + n, r"begin with 'module\.roberta\.'"),
        (
            lambda n: "distilbert." + n.replace("embeddings", "embed"),
            "not an XLM-R checkpoint; its names begin with distilbert",
        ),
    ],
)
def test_names_of_other_models(make: Make, rename: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(make(rename=rename))


def test_two_encoders_in_one_file(make: Make) -> None:
    words = torch.randn(99, 32)
    with pytest.raises(UserError, match=r"2 encoders, under '', 'teacher\.'"):
        load(make(extra={"teacher.embeddings.word_embeddings.weight": words}))


def test_one_tensor_under_two_names(make: Make) -> None:
    with pytest.raises(UserError, match="two names of one tensor"):
        load(make(extra={"embeddings.LayerNorm.gamma": torch.ones(32)}))


@pytest.mark.parametrize("as_bin", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_file(make: Make, as_bin: bool, keep: int) -> None:
    folder = make(as_bin=as_bin)
    file = folder / ("pytorch_model.bin" if as_bin else "model.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=rf"{file.name}: not a whole") as e:
        load(folder)
    assert "\n" not in str(e.value)


def test_a_git_lfs_pointer(make: Make) -> None:
    folder = make()
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="git lfs pull"):
        load(folder)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["safetensors", "zip", "legacy"])
def test_broken_bytes_anywhere_end_in_one_line(tmp_path: Path, how: str) -> None:
    file = tmp_path / ("model.safetensors" if how == "safetensors" else "pytorch_model.bin")
    tensors = {f"layer.{i}.bias": torch.randn(8) for i in range(20)}
    if how == "safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=how == "zip")
    whole = file.read_bytes()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)
    )
    def check(changes: list[tuple[int, bytes]]) -> None:
        broken = bytearray(whole)
        for at, new in changes:
            broken[at : at + len(new)] = new
        file.unlink()  # the last one may still be mapped
        file.write_bytes(broken)
        message = ""
        try:
            opened = open_tensors(tmp_path)
            assert all(opened.read(name).shape == stored.shape for name, stored in opened.stored.items())
        except UserError as error:
            message = str(error)
        assert "\n" not in message
        assert not message or str(file) in message

    check()


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_code_in_a_bin_file_does_not_run(make: Make, tmp_path: Path, how: str) -> None:
    folder = make(as_bin=True)
    file = folder / "pytorch_model.bin"
    content = torch.load(file, weights_only=True) | {"payload": Malicious(tmp_path / "witness")}
    if how == "pickle":
        file.write_bytes(pickle.dumps({"payload": content["payload"]}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"pytorch_model.bin: holds code or objects beside tensors, and is not opened"):
        load(folder)
    assert not (tmp_path / "witness").exists()
    if how == "zip":
        torch.load(file, weights_only=False)  # the file does what it is made for, where it is let
        assert (tmp_path / "witness").exists()


def test_a_bin_file_of_something_else(make: Make) -> None:
    folder = make(as_bin=True)
    torch.save({"state_dict": {}, "epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="expected a flat mapping of names to tensors"):
        load(folder)


def test_integers_are_no_weights(make: Make) -> None:
    folder = make()
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name].to(torch.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name}: got torch.int8, expected a floating point type"):
        load(folder)
