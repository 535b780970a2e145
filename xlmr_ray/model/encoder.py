"""The stack of layers. Module names are the checkpoint's, so that loading renames nothing but a prefix."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.activations import activation
from xlmr_ray.model.attention.backends import ATTENTION, attention
from xlmr_ray.model.generation.cache import CachedLayer, DynamicCache
from xlmr_ray.model.layout import Layout, Packed, Padded


@dataclass(frozen=True, eq=False)
class CrossSource:
    """What cross-attention looks at: hidden states `(B, S_enc, hidden)`, None where the cache has their keys and
    values, and which of them may be seen.
    """

    hidden: Tensor | None
    layout: Padded


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(*tokens, hidden)` to `(*tokens, heads, head_dim)`."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads)


class SelfAttention(nn.Module):
    """Projections to queries, keys and values, and the mixing of values. `fuse` makes the three linear layers one."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob
        self.attend = attention(config.attn_implementation)

    def forward(
        self, x: Tensor, layout: Layout, want_probs: bool, cache: CachedLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`x: (*tokens, hidden)` to the mixed values of the same shape, and the probabilities `(B, heads, S, keys)` if
        wanted. A cache (padded layout) puts what it holds before the keys and values of `x`, and takes those in.
        """
        q, k, v = self.project(x)
        if cache is not None:
            k, v = cache.update(k.transpose(1, 2), v.transpose(1, 2))
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        # Only `eager` has probabilities to show; fused kernels never hold them.
        attend = ATTENTION["eager"] if want_probs else self.attend
        out, probs = attend(q, k, v, layout, self.dropout_p if self.training else 0.0)
        return out.flatten(-2), probs

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x: (*tokens, hidden)` to q, k, v, each `(*tokens, heads, head_dim)`."""
        if hasattr(self, "qkv"):
            fused: Tensor = self.qkv(x)
            q, k, v = fused.view(*x.shape[:-1], 3, self.heads, self.head_dim).unbind(-3)
            return q, k, v
        heads = self.heads
        return split_heads(self.query(x), heads), split_heads(self.key(x), heads), split_heads(self.value(x), heads)

    def fuse(self) -> None:
        """Joins the three projections for good: one linear layer of three times the width. For inference, after
        loading. Quantized ones stay three.
        """
        parts = (self.query, self.key, self.value)
        if any(type(part) is not nn.Linear for part in parts):
            return
        with torch.device("meta"):
            self.qkv = nn.Linear(self.query.in_features, 3 * self.query.out_features)
        self.qkv.weight = nn.Parameter(torch.cat([p.weight.detach() for p in parts]), requires_grad=False)
        self.qkv.bias = nn.Parameter(torch.cat([p.bias.detach() for p in parts]), requires_grad=False)
        del self.query, self.key, self.value


class CrossAttention(nn.Module):
    """A decoder's attention to an encoder's hidden states: its queries, the encoder's keys and values."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob
        self.attend = attention(config.attn_implementation)

    def forward(
        self, x: Tensor, source: CrossSource, want_probs: bool, cache: CachedLayer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`x: (B, S, hidden)` to the mixed values of the same shape, and the probabilities `(B, heads, S, S_enc)` if
        wanted. With a cache the source is projected once.
        """
        if cache is not None and cache.cross_keys is not None and cache.cross_values is not None:
            k, v = cache.cross_keys.transpose(1, 2), cache.cross_values.transpose(1, 2)
        else:
            assert source.hidden is not None
            k = split_heads(self.key(source.hidden), self.heads)
            v = split_heads(self.value(source.hidden), self.heads)
            if cache is not None:
                cache.cross_keys, cache.cross_values = k.transpose(1, 2), v.transpose(1, 2)
        attend = ATTENTION["eager"] if want_probs else self.attend
        q = split_heads(self.query(x), self.heads)
        out, probs = attend(q, k, v, source.layout, self.dropout_p if self.training else 0.0)
        return out.flatten(-2), probs


class Projected(nn.Module):
    """A linear layer back to the hidden size, dropout, the residual and a norm: what ends both halves of a layer."""

    def __init__(self, config: XLMRobertaConfig, in_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """`x: (*tokens, in_features)`, `residual: (*tokens, hidden)` to `(*tokens, hidden)`."""
        out: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return out


class AttentionBlock(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Projected(config, config.hidden_size)

    def forward(
        self, x: Tensor, layout: Layout, want_probs: bool, cache: CachedLayer | None, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        mixed, probs = self.self(x, layout, want_probs, cache)
        if rows is not None:
            mixed, x = mixed[rows], x[rows]
        return self.output(mixed, x), probs


class CrossAttentionBlock(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.self = CrossAttention(config)
        self.output = Projected(config, config.hidden_size)

    def forward(
        self, x: Tensor, source: CrossSource, want_probs: bool, cache: CachedLayer | None
    ) -> tuple[Tensor, Tensor | None]:
        mixed, probs = self.self(x, source, want_probs, cache)
        return self.output(mixed, x), probs


class Intermediate(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """`(*tokens, hidden)` to `(*tokens, intermediate)`."""
        return self.act(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(config)
        if config.add_cross_attention:
            self.crossattention = CrossAttentionBlock(config)
        self.intermediate = Intermediate(config)
        self.output = Projected(config, config.intermediate_size)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        want_probs: bool = False,
        source: CrossSource | None = None,
        cache: CachedLayer | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`x: (*tokens, hidden)` to the same shape, or to `(M, hidden)` of the `rows (M)` only; and, if asked for, the
        probabilities of attention `(B, heads, S, keys)` and of cross-attention `(B, heads, S, S_enc)`.
        """
        x, probs = self.attention(x, layout, want_probs, cache, rows)
        cross_probs = None
        if source is not None:
            x, cross_probs = self.crossattention(x, source, want_probs, cache)
        return self.output(self.intermediate(x), x), probs, cross_probs


@dataclass
class Trace:
    """What an encoder leaves behind when asked: the input of the first layer and the output of each, and each layer's
    probabilities, of attention and of cross-attention.
    """

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None


class Encoder(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        if config.add_cross_attention and not config.is_decoder:
            raise UserError("config: add_cross_attention=True is for decoders: set is_decoder=True, too")
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        # How a layer is called whose activations are not kept for the backward pass, but computed again.
        self.recompute: Callable[..., Any] | None = None
        self.recompute_every = 1

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        trace: Trace | None = None,
        source: CrossSource | None = None,
        cache: DynamicCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """`x: (*tokens, hidden)` to the last layer's output, same shape; a `trace` with lists in it is filled, a
        `cache` goes on, except through layers that are computed again. `source` is for a model with cross-attention.
        `rows (M)` are the packed tokens whose output is read: for the others the last layer ends with its attention,
        and they come as zeros.
        """
        trace = trace or Trace()
        want_probs = trace.attentions is not None
        if want_probs and isinstance(layout, Packed):
            raise UserError(
                "attentions: packed sequences have no (batch, heads, length, length): use the padded layout"
            )
        if trace.hidden_states is not None:
            trace.hidden_states.append(x)
        tokens, last = x.shape, len(self.layer) - 1
        for i, layer in enumerate(self.layer):
            wanted = rows if i == last else None
            again = self.recompute is not None and self.training and i % self.recompute_every == 0
            call = functools.partial(self.recompute, layer) if again and self.recompute is not None else layer
            cached = None if cache is None or again else cache.layer(i)
            x, probs, cross_probs = call(x, layout, want_probs, source, cached, wanted)
            if trace.hidden_states is not None:
                trace.hidden_states.append(x)
            if trace.attentions is not None and probs is not None:
                trace.attentions.append(probs)
            if trace.cross_attentions is not None and cross_probs is not None:
                trace.cross_attentions.append(cross_probs)
        return x if rows is None else x.new_zeros(tokens).index_copy_(0, rows, x)

    def fuse(self) -> None:
        """Fuses q, k and v of every layer's self-attention (see `SelfAttention.fuse`)."""
        for module in list(self.modules()):
            if isinstance(module, SelfAttention):
                module.fuse()

    def compile_layers(self) -> None:
        """Lets torch fuse what lies between the matmuls of each layer, once for all numbers of tokens. Attention
        stays outside: its kernel is fused already, and the lengths in its layout, other ones in every batch, would
        have all of it compiled again.
        """
        for layer in self.layer:
            assert isinstance(layer, Layer)
            mixing = layer.attention.self
            mixing.attend = torch.compiler.disable(mixing.attend)  # type: ignore[no-untyped-call]
            layer.compile(dynamic=True)
