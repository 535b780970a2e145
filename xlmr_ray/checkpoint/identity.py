"""Which checkpoints have the same encoder, and so can share its forward pass."""

from pathlib import Path

from xlmr_ray.checkpoint.digest import encoder_digest
from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.config import XLMRobertaConfig


def encoder_identity(folder: Path) -> str:
    """A string that is equal for checkpoints whose encoders give the same answers: the digest of the weights, and the
    parameters of the configuration that act on them.
    """
    config = XLMRobertaConfig.from_dict(read_config(folder))
    acting = (
        config.hidden_act,
        config.layer_norm_eps,
        config.num_attention_heads,
        config.pad_token_id,
        config.is_decoder,
        config.tie_word_embeddings,
    )
    # Beside those of runs that are older than BERT's layout.
    layout = " bert" if config.bert_layout else ""
    return f"{encoder_digest(folder)} {acting}{layout}"
