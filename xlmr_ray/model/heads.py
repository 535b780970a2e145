"""What sits on the encoder. Parameter names are the checkpoint's."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.activations import activation


class Pooler(nn.Module):
    """The first token, through a linear layer and tanh."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """First tokens' hidden states `(N, hidden)` to `(N, hidden)`."""
        return torch.tanh(self.dense(first))


def classifier_dropout(config: XLMRobertaConfig) -> nn.Dropout:
    """The dropout before a classifier: its own rate, or the hidden one where none is set."""
    return nn.Dropout(config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout)


class ClassificationHead(nn.Module):
    """Sequence classification and regression: first token, linear layer, tanh, linear layer."""

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = classifier_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, first: Tensor) -> Tensor:
        """First tokens' hidden states `(N, hidden)` to logits `(N, labels)`."""
        out: Tensor = self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(first)))))
        return out


def text_classifier(config: XLMRobertaConfig) -> nn.Sequential:
    """From first tokens' hidden states `(N, hidden)` to logits `(N, labels)`, for inference: a `classifier`, or in
    BERT's layout the encoder's `pooler` and a `classifier` of one layer.
    """
    if config.bert_layout:
        linear = nn.Linear(config.hidden_size, config.num_labels)
        return nn.Sequential(OrderedDict(pooler=Pooler(config), classifier=linear))
    return nn.Sequential(OrderedDict(classifier=ClassificationHead(config)))


class LMHead(nn.Module):
    """Masked (and causal) language modelling: linear layer, GELU (in BERT's layout the encoder's own function), norm,
    matmul with the word embeddings.

    `decoder.weight` is the word embeddings' own parameter where the configuration ties them, `decoder.bias` always is
    `bias`.
    """

    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = activation(config.hidden_act if config.bert_layout else "gelu")
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder.bias = self.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `(*tokens, hidden)` to logits `(*tokens, vocab)`. Pass only the tokens whose logits are
        wanted: the vocabulary is large.
        """
        out: Tensor = self.decoder(self.layer_norm(self.act(self.dense(hidden))))
        return out

    def later(self, hidden: Tensor) -> Callable[[], Tensor]:
        """A function that makes the logits of `hidden (*tokens, hidden)` as this call would: with its gradients and
        its precision, and, since they would be others, not once the weights have changed.
        """
        grad, device = torch.is_grad_enabled(), hidden.device.type
        precision = torch.autocast(
            device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )
        inputs = [x for x in (hidden, *self.parameters()) if not x.is_inference()]
        versions = [x._version for x in inputs]

        def make() -> Tensor:
            if versions != [x._version for x in inputs]:
                raise UserError(
                    "logits: the weights have changed since the loss: read them before the optimizer's step"
                )
            with torch.set_grad_enabled(grad), precision:
                out: Tensor = self(hidden)
            return out

        return make
