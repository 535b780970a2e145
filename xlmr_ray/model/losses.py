"""Losses with transformers' rules: `-100` is ignored, and how labels are read follows `problem_type` or is inferred
from them.
"""

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.heads import LMHead

IGNORED = -100


def classification_loss(logits: Tensor, labels: Tensor, config: XLMRobertaConfig) -> Tensor:
    """Of sequence logits `(B, labels)`: squared error, cross-entropy or binary cross-entropy, by `config.problem_type`.

    Where the configuration does not say: one label is regression, integer labels `(B)` are classes, others are
    independent labels.
    """
    problem = config.problem_type
    if problem is None:
        if config.num_labels == 1:
            problem = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            problem = "single_label_classification"
        else:
            problem = "multi_label_classification"
        config.problem_type = problem  # transformers remembers what it inferred, too
    if problem == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if config.num_labels == 1 else F.mse_loss(logits, labels)
    if problem == "single_label_classification":
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `logits (*tokens, classes)` against `labels (*tokens)`, tokens labelled -100 left out.

    Also the loss of a choice: `logits (B, choices)` against the right one's index `(B)`.
    """
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def lm_loss(
    hidden: Tensor, labels: Tensor, head: LMHead, *, items: int | Tensor | None = None, chunk: int = 256
) -> Tensor:
    """Mean cross-entropy, in fp32, of the vocabulary at every token with a label; NaN where there is none. With `items`
    the sum over that number, which is one of several batches whose losses are added up.

    `hidden (*tokens, hidden)`, `labels (*tokens)`, -100 for a token without. Logits are made for `chunk` labelled
    tokens at a time and made again in the backward pass, so that memory grows with the chunk and not with tokens x
    vocabulary: 0.26 GB a copy for 256 tokens and 250,002 entries, where 8 x 512 tokens at once take 4.1 GB.
    """
    if labels.shape != hidden.shape[:-1]:
        raise UserError(
            f"labels: got shape {tuple(labels.shape)}, expected one for each token, {tuple(hidden.shape[:-1])}"
        )
    labels = labels.to(hidden.device)
    labelled = labels != IGNORED
    labels, hidden = labels[labelled], hidden[labelled]
    entries = head.decoder.out_features
    if bool(((labels < 0) | (labels >= entries)).any()):
        lowest, highest = int(labels.min()), int(labels.max())
        raise UserError(f"labels: -100 or entries of the vocabulary, 0 to {entries - 1}, got {lowest} to {highest}")

    # The chunks' gradients are added up in fp32: in bfloat16, 16 chunks put the gradients of the decoder 2 to 4 times
    # as far from the exact ones as a single matmul does.
    own = {name: parameter for name, parameter in head.named_parameters() if parameter.is_floating_point()}
    wide = {name: parameter.float() for name, parameter in own.items()}

    def part(some_hidden: Tensor, some_labels: Tensor) -> Tensor:
        weights = {name: parameter.to(own[name].dtype) for name, parameter in wide.items()}
        logits = functional_call(head, weights, (some_hidden,))
        return F.cross_entropy(logits.float(), some_labels, reduction="sum")

    # Without labels there is still one (empty) chunk: every parameter gets its gradient of zeros, as in transformers.
    total = hidden.new_zeros((), dtype=torch.float32)
    for some_hidden, some_labels in zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True):
        total = total + checkpoint(part, some_hidden, some_labels, use_reentrant=False, preserve_rng_state=False)
    return total / (len(labels) if items is None else torch.as_tensor(items, device=total.device))


def question_answering_loss(
    start_logits: Tensor, end_logits: Tensor, start_positions: Tensor, end_positions: Tensor
) -> Tensor:
    """Mean of the two cross-entropies of where a span starts and ends. Logits `(B, S)`, positions `(B)` or `(B, 1)`.

    A position below 0 counts as 0, one outside the text (S or more) is left out of its mean; NaN where all are.
    """
    length = start_logits.shape[1]

    def mean(logits: Tensor, positions: Tensor) -> Tensor:
        clamped = positions.to(logits.device).reshape(len(logits)).clamp(0, length)
        return F.cross_entropy(logits, clamped, ignore_index=length)

    return (mean(start_logits, start_positions) + mean(end_logits, end_positions)) / 2
