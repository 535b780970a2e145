"""The stack of layers. Module names are the checkpoint's, so that loading renames nothing but a prefix."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.activations import activation
from xlmr_ray.model.attention import ATTENTION, attention
from xlmr_ray.model.layout import Layout


class SelfAttention(nn.Module):
    """Projections to queries, keys and values, and the mixing of values. `fuse` makes the three products one."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob
        self.attend = attention(config.attn_implementation)

    def forward(self, x: Tensor, layout: Layout, want_probs: bool) -> tuple[Tensor, Tensor | None]:
        """`x: (*tokens, hidden)` to the mixed values of the same shape, and the probabilities `(B, heads, S, S)` if
        wanted.
        """
        q, k, v = self.project(x)
        # Only the written-out product has probabilities to show; the fused ones never hold them.
        attend = ATTENTION["eager"] if want_probs else self.attend
        out, probs = attend(q, k, v, layout, self.dropout_p if self.training else 0.0)
        return out.flatten(-2), probs

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x: (*tokens, hidden)` to q, k, v, each `(*tokens, heads, head_dim)`."""
        if hasattr(self, "qkv"):
            fused: Tensor = self.qkv(x)
            q, k, v = fused.view(*x.shape[:-1], 3, self.heads, self.head_dim).unbind(-3)
            return q, k, v
        shape = (*x.shape[:-1], self.heads, self.head_dim)
        return self.query(x).view(shape), self.key(x).view(shape), self.value(x).view(shape)

    def fuse(self) -> None:
        """Joins the three projections for good: one product of three times the width. For inference, after loading."""
        parts = (self.query, self.key, self.value)
        with torch.device("meta"):
            self.qkv = nn.Linear(self.query.in_features, 3 * self.query.out_features)
        self.qkv.weight = nn.Parameter(torch.cat([p.weight.detach() for p in parts]), requires_grad=False)
        self.qkv.bias = nn.Parameter(torch.cat([p.bias.detach() for p in parts]), requires_grad=False)
        del self.query, self.key, self.value


class Projected(nn.Module):
    """A product back to the hidden size, dropout, the residual and a norm: what ends both halves of a layer."""

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

    def forward(self, x: Tensor, layout: Layout, want_probs: bool) -> tuple[Tensor, Tensor | None]:
        mixed, probs = self.self(x, layout, want_probs)
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
        self.intermediate = Intermediate(config)
        self.output = Projected(config, config.intermediate_size)

    def forward(self, x: Tensor, layout: Layout, want_probs: bool = False) -> tuple[Tensor, Tensor | None]:
        """`x: (*tokens, hidden)` to the same shape, and the attention probabilities `(B, heads, S, S)` if wanted."""
        x, probs = self.attention(x, layout, want_probs)
        return self.output(self.intermediate(x), x), probs


@dataclass
class Trace:
    """What an encoder leaves behind when asked: the input of the first layer and the output of each, and each layer's
    probabilities.
    """

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None


class Encoder(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, layout: Layout, trace: Trace | None = None) -> Tensor:
        """`x: (*tokens, hidden)` to the last layer's output, same shape; a `trace` with lists in it is filled."""
        trace = trace or Trace()
        if trace.hidden_states is not None:
            trace.hidden_states.append(x)
        for layer in self.layer:
            x, probs = layer(x, layout, trace.attentions is not None)
            if trace.hidden_states is not None:
                trace.hidden_states.append(x)
            if trace.attentions is not None and probs is not None:
                trace.attentions.append(probs)
        return x

    def fuse(self) -> None:
        """Fuses q, k and v of every layer (see `SelfAttention.fuse`), and lays the weights of all products out by
        columns: on the CPU they were 1.02 times (1.12 for q, k and v) as fast so.
        """
        for module in list(self.modules()):
            if isinstance(module, SelfAttention):
                module.fuse()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = module.weight.data.t().contiguous().t()
