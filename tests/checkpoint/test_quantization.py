"""4-bit and 8-bit layers: what is quantized, saved and loaded again. Against transformers: tests/parity."""

import copy
import dataclasses
import json
import pickle
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import xlmr_ray
from tests.checkpoint.conftest import SIZES, Make
from tests.models import save_classifier
from xlmr_ray.checkpoint import load as loading
from xlmr_ray.checkpoint.digest import encoder_digest, weights_digest
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.checkpoint.load import load_tensors
from xlmr_ray.checkpoint.quantization import BitsAndBytesConfig, make_int8_batch_invariant, scheme
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import bind_task

bnb = pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")

SEQ = "XLMRobertaForSequenceClassification"
WIDE = {"hidden_size": 64, "intermediate_size": 96}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
INT8 = BitsAndBytesConfig(load_in_8bit=True)
IDS = torch.arange(5, 41).reshape(3, 12)


def quantized(folder: Path, config: BitsAndBytesConfig, kind: str = SEQ) -> Any:
    return getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(folder, quantization_config=config)


def same_bytes(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        a, b = (
            t.detach().as_subclass(Tensor).contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other[name])
        )
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "config",
    [
        NF4,
        INT8,
        BitsAndBytesConfig(load_in_4bit=True),
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage="bfloat16", bnb_4bit_compute_dtype="bfloat16"),
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=["classifier"]),
    ],
    ids=["nf4", "int8", "fp4", "stored-as-bf16", "int8-skipping"],
)
@pytest.mark.parametrize("shards", ["5GB", 5_000])
def test_saved_and_loaded_again(make: Make, tmp_path: Path, config: BitsAndBytesConfig, shards: int | str) -> None:
    model = quantized(make(SEQ, **WIDE), config)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shards)
    assert json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"] == config.to_dict()
    again = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "saved")
    same_bytes(model.state_dict(), again.state_dict())
    assert again.load_report.quantized == model.load_report.quantized != ()
    assert again.load_report.unexpected == again.load_report.missing == ()
    assert again.load_report.dtype == again.dtype == torch.float32
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert again.config.extra["quantization_config"] == config.to_dict()


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}
# No multiple of 64 (a block of codes) or 32 (what packed kernels take); 37: half a byte is left over.
WIDTHS = [{"hidden_size": 64, "intermediate_size": 128}, {"hidden_size": 36, "intermediate_size": 37}]


@pytest.mark.parametrize("widths", WIDTHS, ids=["even", "odd"])
@pytest.mark.parametrize(
    "config",
    [
        NF4,
        BitsAndBytesConfig(load_in_4bit=True),
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage="bfloat16", bnb_4bit_compute_dtype="bfloat16"),
        INT8,
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True),
    ],
    ids=["nf4-twice", "fp4", "computed-in-bf16", "int8", "int8-over-floats"],
)
@pytest.mark.parametrize("name", COPIES)
def test_a_forward_changes_nothing_that_is_saved(
    make: Make, tmp_path: Path, config: BitsAndBytesConfig, widths: dict[str, int], name: str
) -> None:
    """Libraries repack weights and convert biases at the first forward, in place: not here, on any CPU."""
    if config.bnb_4bit_quant_storage is torch.bfloat16 and widths["intermediate_size"] == 37:
        pytest.skip("an odd number of bytes is no bfloat16")
    model = quantized(make(SEQ, **widths), config)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = COPIES[name](model)
    with torch.no_grad():
        wanted = model(IDS).logits
    second = COPIES[name](model)
    for one in (model, first, second):
        same_bytes(one.state_dict(), before)
        with torch.no_grad():
            assert torch.equal(one(IDS).logits, wanted)
        same_bytes(one.state_dict(), before)
        one.save_pretrained(tmp_path / "saved")
        again = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "saved")
        if not config.llm_int8_has_fp16_weight:
            same_bytes(again.state_dict(), before)
            assert again.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("widths", WIDTHS, ids=["even", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_computed_in_the_dtype_asked_for(
    make: Make, widths: dict[str, int], dtype: torch.dtype, kind: str
) -> None:
    """In `bnb_4bit_compute_dtype`, also where a CPU has kernels for bfloat16: the dequantized weights' product."""
    model = quantized(
        make(SEQ, **widths),
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype),
    )
    layer = model.roberta.encoder.layer[0].output.dense
    x = torch.randn(5, layer.in_features)
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype)
    with torch.no_grad():
        got, wanted = layer(x), nn.functional.linear(x.to(dtype), weight, layer.bias.to(dtype)).float()
    assert got.dtype is torch.float32
    assert (got - wanted).abs().max() <= (1e-6 if dtype is torch.float32 else 1e-2) * wanted.abs().max()


def test_it_is_smaller_and_near(make: Make) -> None:
    folder = make(SEQ, vocab_size=64, hidden_size=128, intermediate_size=256)
    plain = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
    linear = sum(m.weight.numel() for m in plain.modules() if isinstance(m, nn.Linear))
    rest = plain.get_memory_footprint() - 4 * linear
    for config, bits, error in ((NF4, 4.3, 0.2), (INT8, 8.5, 0.02)):
        model = quantized(folder, config)
        assert model.num_parameters() == plain.num_parameters()
        # Every layer has a table of its 16 levels, and of 256 with double quantization.
        tables = 14 * 4 * (16 + 256) if config.load_in_4bit else 0
        assert model.get_memory_footprint() - rest < linear * bits / 8 + tables + 4096
        assert (model(IDS).logits - plain(IDS).logits).norm() < error * plain(IDS).logits.norm()


def test_one_float_tensor_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(SEQ, **WIDE)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    real = loading.quantized_parameter

    def watched(layer: nn.Module, weight: Tensor, device: torch.device) -> nn.Parameter:
        nonlocal most
        made = real(layer, weight, device)
        alive.append(weakref.ref(weight))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(loading, "quantized_parameter", watched)
    quantized(folder, NF4)
    assert len(alive) == 14
    assert most <= 2  # the one in hand, and the name of the one before


def test_a_new_head_is_no_quantized_one(make: Make) -> None:
    with pytest.warns(UserWarning, match="made anew"):
        model = quantized(make("XLMRobertaModel", **WIDE), INT8, SEQ)
    assert type(model.classifier.dense) is nn.Linear
    assert {p.dtype for p in model.classifier.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.classifier.parameters())
    model.train()
    loss = model(IDS, labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    assert float(model.classifier.dense.weight.grad.abs().max()) > 0


def test_gradients_through_quantized_layers(make: Make) -> None:
    model = quantized(make(SEQ, **WIDE), NF4)
    words = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=words, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert float(words.grad.abs().max()) > 0
    assert isinstance(model.roberta.encoder.layer[0].attention.self.query, bnb.nn.Linear4bit)
    assert model.roberta.encoder.layer[0].attention.self.query.weight.grad is None


def test_the_files_say_what_is_quantized(make: Make, tmp_path: Path) -> None:
    skipping = dataclasses.replace(NF4, llm_int8_skip_modules=["classifier.out_proj", "layer.1.output.dense"])
    model = quantized(make(SEQ, **WIDE), skipping)
    assert type(model.classifier.out_proj) is nn.Linear
    assert type(model.roberta.encoder.layer[1].attention.output.dense) is not nn.Linear
    model.save_pretrained(tmp_path / "saved")
    # Whatever the configuration says now, and whatever is asked for.
    config = json.loads((tmp_path / "saved/config.json").read_text())
    config.pop("quantization_config")
    (tmp_path / "saved/config.json").write_text(json.dumps(config))
    again = quantized(tmp_path / "saved", INT8)
    same_bytes(model.state_dict(), again.state_dict())
    again.save_pretrained(tmp_path / "again")
    said = json.loads((tmp_path / "again/config.json").read_text())["quantization_config"]
    assert said["load_in_4bit"]
    assert said["bnb_4bit_quant_type"] == "nf4"
    # A part of the files, for another class.
    bare = xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path / "saved", add_pooling_layer=False)
    same_bytes(bare.state_dict(), model.roberta.state_dict())
    with torch.device("meta"):
        head = nn.ModuleDict({"classifier": xlmr_ray.modeling.xlm_roberta.ClassificationHead(model.config)})
    assert load_tensors(head, tmp_path / "saved").quantized == ("classifier.dense",)
    same_bytes(head["classifier"].state_dict(), model.classifier.state_dict())


def test_a_float_checkpoint_whose_configuration_speaks_of_quantization(make: Make) -> None:
    folder = make(SEQ)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": NF4.to_dict()}))
    model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
    assert model.load_report.quantized == ()
    assert "quantization_config" not in model.config.extra


def test_digests_of_quantized_files(make: Make, tmp_path: Path) -> None:
    folder = make(SEQ, **WIDE)
    quantized(folder, NF4).save_pretrained(tmp_path / "nf4")
    quantized(folder, INT8).save_pretrained(tmp_path / "int8")
    assert len({digest(f) for digest in (weights_digest, encoder_digest) for f in (folder, tmp_path / "nf4")}) == 4
    before = encoder_digest(tmp_path / "int8")
    file = tmp_path / "int8" / "model.safetensors"
    tensors = load_file(file)
    tensors["roberta.encoder.layer.0.output.dense.SCB"][3] *= 2
    save_file(tensors, file)
    assert encoder_digest(tmp_path / "int8") != before


def test_a_head_trained_on_a_quantized_encoder(make: Make) -> None:
    encoder = make("XLMRobertaModel", **WIDE)
    with pytest.warns(UserWarning, match="made anew"):
        model = quantized(encoder, NF4, SEQ)
    folder = save_head(model, encoder, "mine")
    again = quantized(folder, dataclasses.replace(NF4, llm_int8_skip_modules=["classifier"]), SEQ)
    same_bytes(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8-weights"])
def test_an_engine_on_quantized_files(tmp_path: Path, name: str) -> None:
    whole = save_classifier(tmp_path / "whole", hidden_size=64, num_attention_heads=4)
    model = quantized(whole, scheme(name))
    model.save_pretrained(tmp_path / "small")
    assert type(model.classifier.dense) is nn.Linear
    make_int8_batch_invariant(model)  # as the engine does
    engine = Engine.load(
        tmp_path / "small", [bind_task("text-classification", tmp_path / "small", {})], EngineSettings(device="cpu")
    )
    rng = np.random.default_rng(0)
    texts = [[0, *rng.integers(5, 200, int(n)).tolist(), 2] for n in rng.integers(1, 40, 12)]
    got = engine.run(pa.array(texts, pa.list_(pa.int32())))
    assert not got.failed
    for text, logits in zip(texts, got.raw[0], strict=True):
        wanted = model(torch.tensor([text])).logits[0].detach().numpy()
        assert np.abs(wanted - logits).max() < 1e-5 * np.abs(wanted).max()
    # What else is in the batch does not matter.
    engine.max_tokens = 64
    assert np.array_equal(engine.run(pa.array(texts, pa.list_(pa.int32()))).raw[0], got.raw[0])


def test_eight_bits_whose_results_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    whole = save_classifier(tmp_path / "whole", hidden_size=64, num_attention_heads=4)
    plain = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(whole)
    model, small = quantized(whole, INT8), quantized(whole, INT8)
    model.eval()
    make_int8_batch_invariant(small)
    ids = torch.arange(5, 165).reshape(8, 20)
    with torch.no_grad():
        wanted, rounded, got = plain(ids).logits, model(ids).logits, small(ids).logits
    assert (got - wanted).norm() < 0.7 * (rounded - wanted).norm()  # the activations are not rounded
    assert (got - wanted).norm() > 0
    assert not [layer for layer in small.modules() if isinstance(layer, nn.Linear)]
    codes = model.classifier.dense.weight.data
    assert torch.equal(small.classifier.dense.codes, codes)
    assert small.classifier.dense.codes.dtype is torch.int8


def test_what_a_config_refuses() -> None:
    for values, message in (
        ({"load_in_4bit": True, "load_in_8bit": True}, "both set"),
        ({"bnb_4bit_quant_type": "int4"}, "'int4' is none of nf4, fp4"),
        ({"bnb_4bit_compute_dtype": "half_float"}, "bnb_4bit_compute_dtype 'half_float' is not a dtype"),
        ({"bnb_4bit_quant_storage": "int64"}, "bnb_4bit_quant_storage int64 is none of uint8"),
    ):
        with pytest.raises(UserError, match=message):
            BitsAndBytesConfig(**values)
    with pytest.raises(UserError, match="quant_method 'gptq' is not supported; bitsandbytes is"):
        BitsAndBytesConfig.from_dict({"quant_method": "gptq", "bits": 4})
    with pytest.raises(UserError, match="'int4' is none of nf4, fp4, int8"):
        scheme("int4")
    config = BitsAndBytesConfig.from_dict({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16", "of_2031": 1})
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert BitsAndBytesConfig.from_dict(config.to_dict()) == config


def test_an_empty_request(make: Make) -> None:
    with pytest.raises(UserError, match="set load_in_4bit or load_in_8bit"):
        quantized(make(SEQ), BitsAndBytesConfig())


def test_without_the_library(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(SEQ, **WIDE)
    quantized(folder, NF4).save_pretrained(tmp_path / "nf4")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "xlmr_ray.checkpoint.bnb_layers")
    monkeypatch.delattr("xlmr_ray.checkpoint.bnb_layers")
    xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
    for options in ({"quantization_config": NF4}, {"pretrained_model_name_or_path": tmp_path / "nf4"}):
        with pytest.raises(UserError, match=r"need bitsandbytes .*pip install 'xlmr-ray\[quantization\]'") as error:
            xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(
                **{"pretrained_model_name_or_path": folder, **options}
            )
        assert "\n" not in str(error.value)


LAYER = "roberta.encoder.layer.0.output.dense."


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (NF4, {"weight.absmax": None}, "no absmax beside the quantized weight"),
        (NF4, {"weight.nested_quant_map": None}, "no nested_quant_map beside"),
        (NF4, {"weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}, "not the state of a quant"),
        (NF4, {"weight.quant_state.bitsandbytes__nf4": None}, "got torch.uint8 of shape"),
        (NF4, {"weight": None}, "got no such tensor, expected shape"),
        (INT8, {"SCB": torch.ones(3)}, "SCB: got 3, expected 64 scales"),
        (INT8, {"weight_format": torch.tensor(1, dtype=torch.uint8)}, "layout of old bitsandbytes"),
        (INT8, {"weight": torch.ones(64, 95, dtype=torch.int8)}, r"shape \(64, 95\), expected int8 of \(64, 96\)"),
    ],
)
def test_files_that_are_not_whole(
    make: Make, tmp_path: Path, config: BitsAndBytesConfig, change: dict[str, Tensor | None], message: str
) -> None:
    quantized(make(SEQ, **WIDE), config).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in change.items():
        assert LAYER + name in tensors
        if tensor is None:
            del tensors[LAYER + name]
        else:
            tensors[LAYER + name] = tensor
    save_file(tensors, file)
    with pytest.raises(UserError, match=message) as error:
        xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert LAYER in str(error.value)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_another_shape_than_the_configuration_says(make: Make, tmp_path: Path) -> None:
    quantized(make(SEQ, **WIDE), NF4).save_pretrained(tmp_path / "saved")
    with torch.device("meta"):
        model = xlmr_ray.XLMRobertaForSequenceClassification(
            XLMRobertaConfig(**{**SIZES, **WIDE, "intermediate_size": 128})
        )
    with pytest.raises(UserError, match=r"weight: got a quantized weight of shape \(96, 64\), expected \(128, 64\)"):
        load_tensors(model, tmp_path / "saved")


def test_another_method_s_files(make: Make) -> None:
    folder = make(SEQ)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    with pytest.raises(UserError, match=r"config.json: quantization_config: quant_method 'gptq' is not supported"):
        xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
