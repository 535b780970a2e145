"""Low-rank changes of several adapters (LoRA, Hu et al. 2021) beside the weights of one encoder: y = W x + B A x, for
the tokens of each adapter its own A and B.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from xlmr_ray.model.batch_invariance import pad_rows

FUSED = ("query", "key", "value")  # parts of a layer `qkv`, in this order


@dataclass(frozen=True)
class AdapterSpan:
    """The tokens from `first` to before `last` of a batch, which are of the adapter of this number."""

    adapter: int
    first: int
    last: int


class Spans:
    """Whose the tokens are of the batch that is computed now; those in no span are the base's."""

    def __init__(self) -> None:
        self.now: list[AdapterSpan] = []


class Change(nn.Module):
    """What an adapter adds to a layer's output, from column `first` on: a low-rank product, a bias, or both."""

    def __init__(self, a: Tensor | None, b: Tensor | None, bias: Tensor | None, first: int) -> None:
        """`a (r, in)`, `b (out, r)`, `bias (out)`."""
        super().__init__()
        self.down = None if a is None else linear_of(a)
        self.up = None if b is None else linear_of(b)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        width = next(len(one) for one in (b, bias) if one is not None)
        self.columns = slice(first, first + width)

    def add(self, out: Tensor, x: Tensor) -> None:
        """To `out (T, features)` in place, for `x (T, in)`."""
        if self.down is not None and self.up is not None:
            out[:, self.columns] += self.up(self.down(pad_rows(x)))[: len(x)]
        if self.bias is not None:
            out[:, self.columns] += self.bias


class Adapted(nn.Module):
    """A layer, and the changes to it by the adapter's number."""

    def __init__(self, layer: nn.Module, spans: Spans) -> None:
        super().__init__()
        self.layer, self.spans = layer, spans
        self.changes = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """`(T, in)` to `(T, out)`."""
        out: Tensor = self.layer(x)
        for span in self.spans.now:
            own = slice(span.first, span.last)
            if (name := str(span.adapter)) in self.changes:
                for change in self.changes[name].children():
                    assert isinstance(change, Change)
                    change.add(out[own], x[own])
        return out


def adapt(model: nn.Module, adapters: Sequence[Mapping[str, Tensor]], spans: Spans) -> None:
    """Puts the adapters, by number, beside the layers of an encoder that is loaded and fused: tensors `NAME.A (r, in)`
    and `NAME.B (out, r)`, whose product is added to the weight, and `NAME.bias (out)`, which is added to the bias.
    """
    like = next(model.parameters())
    for number, adapter in enumerate(adapters):
        for name in dict.fromkeys(key.rpartition(".")[0] for key in adapter):
            parts = [adapter.get(f"{name}.{part}") for part in ("A", "B", "bias")]
            a, b, bias = (None if part is None else part.to(like.device, like.dtype) for part in parts)
            place, first = name, 0
            parent, _, own = name.rpartition(".")
            if own in FUSED and hasattr(model.get_submodule(parent), "qkv"):
                place = f"{parent}.qkv"
                first = FUSED.index(own) * next(len(part) for part in (b, bias) if part is not None)
            layer = model.get_submodule(place)
            if not isinstance(layer, Adapted):
                layer = Adapted(layer, spans)
                model.set_submodule(place, layer)
            if str(number) not in layer.changes:
                layer.changes[str(number)] = nn.ModuleList()
            changes = layer.changes[str(number)]
            assert isinstance(changes, nn.ModuleList)
            changes.append(Change(a, b, bias, first))


def adapter_spans(owners: Sequence[int | None], row_splits: Sequence[int]) -> list[AdapterSpan]:
    """Of sequences with these adapters, None for none, which begin and end at `row_splits`: neighbours are one span."""
    spans: list[AdapterSpan] = []
    for owner, (first, last) in zip(owners, pairwise(row_splits), strict=True):
        if owner is None:
            continue
        if spans and spans[-1].adapter == owner and spans[-1].last == first:
            first = spans.pop().first
        spans.append(AdapterSpan(owner, first, last))
    return spans


def linear_of(weight: Tensor) -> nn.Linear:
    """Without bias, of a weight `(out, in)`."""
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made
