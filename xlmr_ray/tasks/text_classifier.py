"""The head that classifies a sequence by its first token, which several tasks have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xlmr_ray.config import XLMRobertaConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch


def classifier(config: XLMRobertaConfig) -> nn.Module:
    """On the meta device, to be filled from the checkpoint."""
    from xlmr_ray.model.heads import text_classifier
    from xlmr_ray.model.meta_device import shapes_only

    with shapes_only():
        return text_classifier(config)


def logits_of(head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Of N sequences, `(N, labels of the checkpoint)`."""
    from xlmr_ray.model.batch_invariance import pad_rows

    logits: Tensor = head(pad_rows(batch.first(hidden)))
    return logits[: batch.sequences]
