"""Linear layers through oneDNN: torch's answers, and rows whose bits do not depend on how many there are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xlmr_ray.model.linear import OneDnnLinear, linear, supported, use_onednn, use_torch

DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if supported(dtype)]
# Feed-forward layers, and a square one, of sizes for which MKL splits sums among threads.
SIZES = [(768, 3072), (1152, 384), (1024, 1024), (37, 36)]


def layer(size: tuple[int, int], dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(size[1], size[0], dtype=dtype).requires_grad_(False)
    nn.init.normal_(made.weight, std=0.05)
    return made


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_row_do_not_depend_on_the_number_of_rows(dtype: torch.dtype, size: tuple[int, int], threads: int):
    plain = layer(size, dtype)
    x = torch.randn(528, size[1]).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for module in (OneDnnLinear(plain, prepack=True), OneDnnLinear(plain, prepack=False)):
                wanted = module(x)
                assert (wanted.float() - plain(x).float()).abs().max() <= 2e-2 if dtype is torch.bfloat16 else 2e-5
                for rows in (16, 32, 48, 112, 144, 272, 384, 512):
                    assert torch.equal(module(x[:rows]), wanted[:rows])
                    assert torch.equal(module(x[-rows:]), wanted[-rows:])
    finally:
        torch.set_num_threads(before)


def test_weights_are_shared_unless_prepacked():
    model = nn.Sequential(layer((32, 48), torch.float32), nn.GELU(), layer((16, 32), torch.float32))
    first = model[0].weight
    x = torch.randn(16, 48)
    use_onednn(model, prepack=False)
    assert [type(m) for m in model] == [OneDnnLinear, nn.GELU, OneDnnLinear]
    assert model[0].weight is first
    with torch.no_grad():
        before = model(x)
        first.mul_(2)
        assert not torch.equal(model(x), before)


@pytest.mark.parametrize("prepack", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_back_to_torchs_layers(dtype: torch.dtype, prepack: bool):
    model = nn.Sequential(layer((37, 48), dtype), layer((16, 37), dtype))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use_onednn(model, prepack=prepack)
    use_torch(model)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear]
    assert list(model.state_dict()) == list(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_what_onednn_has_no_kernel_for_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("xlmr_ray.model.linear.supported", lambda dtype: False)
    model = nn.Sequential(layer((32, 48), torch.float32))
    use_onednn(model, prepack=True)
    assert type(model[0]) is nn.Linear
    x = torch.randn(3, 48)
    assert torch.equal(linear(x, model[0].weight, None), F.linear(x, model[0].weight))
    assert not supported(torch.float64)


def test_gradients_are_torchs():
    plain = layer((32, 48), torch.float32).requires_grad_(True)
    linear(torch.randn(4, 48), plain.weight, plain.bias).sum().backward()
    assert plain.weight.grad is not None


@pytest.mark.parametrize("shape", [(0, 48), (1, 48), (2, 3, 48), (5, 1, 48)])
def test_any_number_of_tokens(shape: tuple[int, ...]):
    plain = layer((32, 48), torch.float32)
    x = torch.randn(*shape)
    with torch.inference_mode():
        for prepack in (False, True):
            got = OneDnnLinear(plain, prepack=prepack)(x)
            assert got.shape == (*shape[:-1], 32)
            torch.testing.assert_close(got, plain(x))
