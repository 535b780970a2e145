"""How many floating point operations the encoder takes: two for each multiplication and addition of its matmuls and of
attention. Embeddings, norms and heads are left out, as is usual for a model's utilization (MFU).
"""

import numpy as np
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig


def matmul_operations(config: XLMRobertaConfig) -> float:
    """Operations a token of the matmuls with weights: two for each weight of a layer, `8 h^2 + 4 h i`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (8.0 * hidden**2 + 4.0 * hidden * inner)


def attention_operations(config: XLMRobertaConfig, lengths: NDArray[np.number]) -> float:
    """Operations of attention for sequences of these `lengths: (N,)` in tokens: `4 h n^2` a layer, for the scores and
    for the weighted sums.
    """
    return float(4.0 * config.num_hidden_layers * config.hidden_size * (lengths.astype(float) ** 2).sum())
