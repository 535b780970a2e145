"""Words, positions and token types, added up and normalized."""

import torch
from torch import Tensor, nn

from xlmr_ray.config import XLMRobertaConfig


class EmbeddingLayer(nn.Module):
    def __init__(self, config: XLMRobertaConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings,
            config.hidden_size,
            padding_idx=config.pad_token_id if config.skips_padding else None,
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Ids `(*tokens)`, or `inputs_embeds (*tokens, hidden)` instead of `input_ids`, to hidden states `(*tokens,
        hidden)`.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        types = (
            self.token_type_embeddings.weight[0]
            if token_type_ids is None
            else self.token_type_embeddings(token_type_ids)
        )
        # The order of the two sums is transformers': another one rounds differently.
        out: Tensor = self.dropout(self.LayerNorm(words + types + self.position_embeddings(position_ids)))
        return out


def positions_from_ids(input_ids: Tensor, pad_token_id: int, past: int = 0) -> Tensor:
    """Positions `(B, S)` of padded ids `(B, S)`: tokens count from `pad_token_id + 1 + past`, padding stays at
    `pad_token_id`.
    """
    mask = input_ids.ne(pad_token_id).int()
    return ((mask.cumsum(1) + past) * mask).long() + pad_token_id


def positions_from_embeds(inputs_embeds: Tensor, pad_token_id: int) -> Tensor:
    """Positions `(B, S)` of embeddings `(B, S, hidden)`: which of them are padding is not known, so all count."""
    start = pad_token_id + 1
    positions = torch.arange(start, start + inputs_embeds.shape[1], device=inputs_embeds.device)
    return positions.expand(inputs_embeds.shape[:2])
