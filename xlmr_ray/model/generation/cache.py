"""Keys and values of the tokens that a decoder has seen, so that a step computes only the new ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.stand_in import StandIn


@dataclass
class CachedLayer:
    """A layer's keys and values `(B, heads, S, head_dim)` so far, and those of the encoder `(B, heads, S_enc,
    head_dim)`, which cross-attention computes once.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    cross_keys: Tensor | None = None
    cross_values: Tensor | None = None

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values `(B, heads, new, head_dim)` of new tokens; all of them."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Makes row `i` of the batch what row `rows[i]` was; there may be more or fewer than before."""
        for name, tensor in vars(self).items():
            if tensor is not None:
                setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


class DynamicCache(StandIn):
    """The cache of a whole model, a `CachedLayer` a layer; it grows with the tokens. Iterates over `(keys, values)`.

    Layers are made with the first tokens, or now for the model of a `config`.
    """

    stands_in_for = ("transformers.cache_utils", "DynamicCache")

    def __init__(self, config: XLMRobertaConfig | None = None) -> None:
        self.layers = [CachedLayer() for _ in range(0 if config is None else config.num_hidden_layers)]

    def layer(self, index: int) -> CachedLayer:
        """That layer's part, made if it is not there yet."""
        while len(self.layers) <= index:
            self.layers.append(CachedLayer())
        return self.layers[index]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Appends keys and values `(B, heads, new, head_dim)` of new tokens to a layer; all of the layer's."""
        return self.layer(layer_idx).update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of tokens seen, padding included."""
        keys = self.layers[layer_idx].keys if layer_idx < len(self.layers) else None
        return 0 if keys is None else keys.shape[-2]

    def get_cross_length(self) -> int:
        """The number of the encoder's tokens, 0 where cross-attention has not run."""
        keys = self.layers[0].cross_keys if self.layers else None
        return 0 if keys is None else keys.shape[-2]

    def crop(self, length: int) -> None:
        """Keeps the first `length` tokens, or leaves the last `-length` out."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                kept = max(0, length if length >= 0 else layer.keys.shape[-2] + length)
                layer.keys, layer.values = layer.keys[..., :kept, :], layer.values[..., :kept, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row `i` of the batch goes on from what row `beam_idx[i]` has seen."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows of the batch, in this order."""
        for layer in self.layers:
            layer.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row of the batch `repeats` times, one after another."""
        keys = self.layers[0].keys if self.layers else None
        if keys is not None:
            self.batch_select_indices(torch.arange(len(keys)).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets all tokens."""
        self.layers.clear()

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        return ((layer.keys, layer.values) for layer in self.layers)


class Borrowed(DynamicCache):
    """A cache of transformers', which keeps what it is given itself. Cross-attention is computed in every step."""

    def __init__(self, theirs: Any) -> None:
        super().__init__()
        self.theirs = theirs

    def layer(self, index: int) -> CachedLayer:
        return BorrowedLayer(theirs=self.theirs, index=index)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.theirs.get_seq_length(layer_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.theirs.reorder_cache(indices)


@dataclass
class BorrowedLayer(CachedLayer):
    theirs: Any = None
    index: int = 0

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.theirs.update(keys, values, self.index)
        return found


def as_ours(cache: Any) -> DynamicCache | None:
    """A cache of ours, or of transformers' that grows with the tokens; None for None. Raises UserError for another."""
    if cache is None or type(cache) is DynamicCache or type(cache) is Borrowed:
        return cache
    growing = type(cache).__name__ == "DynamicCache" and not any(getattr(cache, "is_sliding", ()))
    if not growing or getattr(cache, "offloading", False):
        raise UserError(f"past_key_values: expected a DynamicCache, got {type(cache).__name__}")
    return Borrowed(cache)


def tensors_of(cache: DynamicCache) -> tuple[list[Tensor], list[list[str]]]:
    """The tensors of a cache, and which each layer has: what torch takes it apart into."""
    names = [[name for name, tensor in vars(layer).items() if tensor is not None] for layer in cache.layers]
    return [getattr(layer, name) for layer, has in zip(cache.layers, names, strict=True) for name in has], names


def cache_of(tensors: Iterable[Any], names: list[list[str]]) -> DynamicCache:
    """The cache that `tensors_of` took apart."""
    found, cache = iter(tensors), DynamicCache()
    cache.layers = [CachedLayer(**{name: next(found) for name in has}) for has in names]
    return cache


register_pytree_node(
    DynamicCache, tensors_of, cache_of, serialized_type_name=f"{DynamicCache.__module__}.{DynamicCache.__qualname__}"
)
