"""How likely a language modelling head finds tokens: what perplexity and pseudo-perplexity share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.tasks.windows import document_splits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

# Tokens whose logits are there at a time: 0.26 GB a copy in fp32 for 250,002 entries.
CHUNK = 256

FIELDS = (("perplexity", pa.float64()), ("log_likelihood", pa.float64()), ("tokens", pa.int32()))


def language_model(config: XLMRobertaConfig) -> nn.ModuleDict:
    """The head of causal and masked checkpoints, on the meta device."""
    from torch import nn

    from xlmr_ray.model.heads import LMHead
    from xlmr_ray.model.meta_device import shapes_only

    with shapes_only():
        return nn.ModuleDict({"lm_head": LMHead(config)})


def log_probabilities(head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """The natural logarithm `(M)`, in fp32, of the probability of each of a batch's M targets at its token.

    `hidden (T, hidden)`. The logits are made and dropped `CHUNK` tokens at a time: memory does not grow with tokens x
    vocabulary.
    """
    import torch
    from torch.nn import functional as F

    from xlmr_ray.model.batch_invariance import pad_rows

    assert batch.targets is not None
    model = head.get_submodule("lm_head")
    targets = torch.split(batch.at_targets(batch.targets), CHUNK)
    parts = []
    for states, wanted in zip(torch.split(batch.at_targets(hidden), CHUNK), targets, strict=True):
        logits = model(pad_rows(states))[: len(states)].float()
        parts.append(-F.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(parts)


@dataclass(frozen=True)
class Likelihoods:
    """Of D documents: the sum of the log-probabilities of a document's targets `[D]`, and how many these are `[D]`."""

    log_likelihood: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @classmethod
    def of(cls, raw: NDArray[np.float32], encoded: pa.Table) -> Likelihoods:
        """From the log-probabilities `(R)` of all targets of an encoded table, in its order."""
        sequences = np.diff(document_splits(encoded))
        targets = encoded["targets"].combine_chunks()
        document = np.repeat(np.arange(len(sequences)), sequences)
        owner = np.repeat(document, targets.value_lengths().to_numpy())[targets.flatten().to_numpy() != IGNORED]
        return cls(
            np.bincount(owner, weights=raw, minlength=len(sequences)).astype(np.float64),
            np.bincount(owner, minlength=len(sequences)),
        )

    def columns(self) -> list[pa.Array]:
        """The columns of `FIELDS`: perplexity is `exp(-log_likelihood / tokens)`, null where no token was scored."""
        none = self.tokens == 0
        with np.errstate(over="ignore"):  # a perplexity beyond 1e308 is infinite
            perplexity = np.exp(-self.log_likelihood / np.maximum(self.tokens, 1))
        return [
            pa.array(perplexity, mask=none),
            pa.array(self.log_likelihood),
            pa.array(self.tokens.astype(np.int32)),
        ]


def likelihood_answers(table: pa.Table) -> list[Any]:
    """`{"perplexity": …, "log_likelihood": …, "tokens": …}` of each document of an output table."""
    return list(table.select([name for name, _ in FIELDS]).to_pylist())
