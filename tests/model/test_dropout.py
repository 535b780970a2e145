import pytest
import torch
from torch import nn

from xlmr_ray.model.attention.backends import attention
from xlmr_ray.model.dropout import TrainedDropout, dropout, train_with_cheap_dropout
from xlmr_ray.model.layout import Packed


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 1e-6, 0.99999])
def test_the_share_and_the_mean(p):
    torch.manual_seed(0)
    x = torch.full((1_000_003,), 2.0)
    out = dropout(x, p)
    zero = (out == 0).double().mean().item()
    # Four standard deviations of so many draws, and the 65,536 steps of a probability.
    assert abs(zero - p) < 4 * (p * (1 - p) / len(x)) ** 0.5 + 1 / 65536
    left = out[out != 0]
    assert len(left.unique()) <= 1
    if len(left):
        assert left[0].item() * (len(left) / len(x)) == pytest.approx(2.0, rel=0.01 if p < 0.95 else 0.5)


def test_draws_do_not_depend_on_each_other():
    """Neighbours, columns and calls: a value's chance is the same whatever others were."""
    torch.manual_seed(1)
    first, second = (dropout(torch.ones(1 << 20), 0.5) > 0 for _ in range(2))
    for a, b in ((first[:-1], first[1:]), (first[:-4], first[4:]), (first[:-768], first[768:]), (first, second)):
        assert abs((a == b).double().mean().item() - 0.5) < 4 * 0.5 / len(a) ** 0.5


def test_torchs_seed_decides():
    x = torch.randn(37, 11)
    torch.manual_seed(7)
    one, two = dropout(x, 0.3), dropout(x, 0.3)
    torch.manual_seed(7)
    assert torch.equal(dropout(x, 0.3), one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 8), (1,), (5, 3), (2, 3, 7)])
def test_gradients_are_those_of_what_was_kept(shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    out = dropout(x, 0.4)
    assert out.dtype is dtype
    assert out.shape == x.shape
    out.sum().backward()
    assert torch.equal(x.grad != 0, out != 0)
    torch.testing.assert_close(out, x * x.grad)


def test_a_module_drops_in_training_only():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    train_with_cheap_dropout(model)
    assert type(model[1]) is TrainedDropout
    x = torch.randn(64, 4)
    assert (model(x) == 0).any()
    assert torch.equal(model.eval()(x), model[0](x))


@pytest.mark.parametrize("name", ["eager", "sdpa", "auto"])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_drops_probabilities(name, causal):
    """Its mean over many draws is what there is without a dropout, and each draw of it another."""
    torch.manual_seed(2)
    layout = Packed.of([5, 3, 3], causal=causal)
    q, k, v = torch.randn(3, 11, 2, 8)
    plain = attention(name)(q, k, v, layout, 0.0)[0]
    draws = torch.stack([attention(name)(q, k, v, layout, 0.2)[0] for _ in range(600)])
    assert draws.std(0).min() > 1e-3
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - plain).abs() < 5 * error).all()


def test_packed_attention_has_gradients_in_every_run():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 11, 2, 8))
    attention("sdpa")(q, k, v, Packed.of([5, 3, 3]), 0.2)[0].square().sum().backward()
    assert all((x.grad.flatten(1) != 0).any(1).all() for x in (q, k, v))
