"""Losses with the reference's rules: `-100` is ignored, and how labels are read follows `problem_type` or is inferred
from them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig


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
        config.problem_type = problem  # the reference remembers what it inferred, too
    if problem == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if config.num_labels == 1 else F.mse_loss(logits, labels)
    if problem == "single_label_classification":
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of `logits (*tokens, classes)` against `labels (*tokens)`, tokens labelled -100 left out."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
