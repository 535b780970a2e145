"""Modules over devices. Torch's meta device stands in for a second one where there is no GPU."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import xlmr_ray
from tests.checkpoint.conftest import SIZES, Make
from xlmr_ray.checkpoint import device_map
from xlmr_ray.checkpoint.device_map import connect, device_of, moved, spread_modules, unit_sizes
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.layout import Packed, Padded

IDS = torch.arange(5, 29).reshape(2, 12)


def test_one_device_that_holds_all() -> None:
    assert spread_modules({"a": 5, "b": 5, "c": 5}, {"cuda:0": 15}) == dict.fromkeys("abc", "cuda:0")


def test_the_rest_is_the_cpu_s() -> None:
    assert spread_modules({"a": 5, "b": 5, "c": 5, "d": 1}, {"cuda:0": 12}) == {
        "a": "cuda:0",
        "b": "cuda:0",
        "c": "cpu",
        "d": "cpu",
    }
    assert spread_modules({"a": 5}, {}) == {"a": "cpu"}


def test_shares_by_free_memory() -> None:
    layers = {f"layer.{i}": 10 for i in range(12)}
    placed = spread_modules(layers, {"cuda:0": 100, "cuda:1": 100, "cuda:2": 200})
    assert [list(placed.values()).count(f"cuda:{i}") for i in range(3)] == [3, 3, 6]
    full = spread_modules(layers, {"cuda:0": 35, "cuda:1": 45})
    assert [list(full.values()).count(device) for device in ("cuda:0", "cuda:1", "cpu")] == [3, 4, 5]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.lists(st.integers(1, 120), max_size=4))
def test_nothing_overflows_and_no_device_is_come_back_to(sizes: list[int], free: list[int]) -> None:
    room = {f"cuda:{i}": bytes_ for i, bytes_ in enumerate(free)}
    placed = spread_modules({f"m{i}": size for i, size in enumerate(sizes)}, room)
    assert list(placed) == [f"m{i}" for i in range(len(sizes))]
    order = [*room, "cpu"]
    places = [order.index(device) for device in placed.values()]
    assert places == sorted(places)
    for device, most in room.items():
        assert sum(size for size, at in zip(sizes, placed.values(), strict=True) if at == device) <= most
    if free and sum(sizes) <= free[-1]:
        assert "cpu" not in placed.values()


def test_sizes_of_what_stays_together() -> None:
    with torch.device("meta"):
        model = xlmr_ray.XLMRobertaForMaskedLM(XLMRobertaConfig(**SIZES))
    sizes, together = unit_sizes(model, 4, 0.5)
    assert list(together) == [
        "roberta.embeddings",
        "roberta.encoder.layer.0",
        "roberta.encoder.layer.1",
        "lm_head",
    ]
    # The head's last product is the word embeddings.
    assert together["lm_head"] == "roberta.embeddings"
    assert set(sizes) == {"roberta.embeddings", "roberta.encoder.layer.0", "roberta.encoder.layer.1"}
    linear = 4 * 32 * 32 + 2 * 32 * 37
    assert sizes["roberta.encoder.layer.0"] == linear // 2 + 4 * (9 * 32 + 37)
    assert sum(unit_sizes(model, 4, 4)[0].values()) == 4 * sum(p.numel() for p in model.parameters())


def test_the_longest_prefix_counts() -> None:
    devices = {"": "cpu", "roberta.encoder": 0, "roberta.encoder.layer.1": "cuda:1"}
    for name, device in {
        "roberta.embeddings.LayerNorm.bias": "cpu",
        "roberta.encoder.layer.0.output.dense.bias": "cuda:0",
        "roberta.encoder.layer.1.output.dense.bias": "cuda:1",
        "roberta.encoder.layer.10.output.dense.bias": "cuda:0",
    }.items():
        assert device_of(devices, name) == torch.device(device)
    with pytest.raises(UserError, match=r"device_map: no device for classifier.bias: name its module, or give all the"):
        device_of({"roberta": "cpu"}, "classifier.bias")


def test_what_is_moved() -> None:
    meta = torch.device("meta")
    mask = torch.ones(2, 3)
    layout = moved(Padded(mask, True), meta)
    assert layout.causal
    assert layout.mask.device == meta
    packed = moved((Packed.of([3, 4]), [mask], None, "x"), meta)
    assert packed[0].cu_seqlens.device == packed[1][0].device == meta
    assert packed[0].lengths == (3, 4)
    trace = xlmr_ray.model.encoder.Trace(hidden_states=[mask])
    assert moved(trace, meta) is trace


@pytest.mark.parametrize("kind", ["XLMRobertaModel", "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"])
def test_tensors_cross_at_the_seams(make: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Half of the layers are on another device: products of tensors on two would fail."""
    crossings: list[tuple[str, str]] = []
    real = device_map.moved

    def watched(value: Any, device: torch.device) -> Any:
        if isinstance(value, Tensor) and value.device != device:
            crossings.append((value.device.type, device.type))
            if value.is_meta:
                return torch.zeros(value.shape, dtype=value.dtype)  # torch refuses: there is no content to come back
        return real(value, device)

    monkeypatch.setattr(device_map, "moved", watched)
    folder = make(kind)
    model = getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(folder)
    prefix = "" if kind == "XLMRobertaModel" else "roberta."
    model.get_submodule(f"{prefix}encoder.layer.1").to("meta")
    connect(model, {"": "cpu", f"{prefix}encoder.layer.1": "meta"})
    mask = torch.ones_like(IDS)
    mask[0, 7:] = 0
    output = model(IDS, attention_mask=mask)
    assert output[0].device.type == "cpu"
    assert ("cpu", "meta") in crossings
    assert ("meta", "cpu") in crossings


def test_a_map_of_one_device_changes_nothing(make: Make) -> None:
    folder = make("XLMRobertaForSequenceClassification")
    plain = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder)
    for devices in ("cpu", "auto", {"": "cpu"}, {"roberta": "cpu", "classifier": "cpu"}, torch.device("cpu")):
        model = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(folder, device_map=devices)
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
        assert not model.classifier._forward_pre_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "disk"}, "device 'disk' is none: cpu, cuda or cuda:0 are usual; disk is not supported"),
        ({"device_map": {"": "cuda:77"}}, "device cuda:77: torch .* finds"),
        ({"device_map": 77}, "device 77: torch .* finds"),
        ({"device_map": {"roberta": "cpu"}}, "device_map: no device for classifier"),
        ({"device_map": {"": "cpu"}, "device": "cpu"}, "give device or device_map, not both"),
    ],
)
def test_maps_that_fit_nothing(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(
            make("XLMRobertaForSequenceClassification"), **options
        )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"])
def test_a_gpu_and_the_cpu(make: Make, kind: str) -> None:
    folder = make(kind)
    plain = getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(folder)
    devices = {"": "cuda:0", "roberta.encoder.layer.1": "cpu"}
    model = getattr(xlmr_ray.modeling.xlm_roberta, kind).from_pretrained(folder, device_map=devices)
    assert {p.device.type for p in model.parameters()} == {"cuda", "cpu"}
    got = model(IDS.cuda()).logits
    assert got.is_cuda
    assert torch.allclose(got.cpu(), plain(IDS).logits, atol=1e-5)
