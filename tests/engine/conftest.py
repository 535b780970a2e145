"""Small checkpoints with random weights, saved by transformers."""

from pathlib import Path

import pytest
import torch
import transformers


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the shapes that real ones have: multiples of 8, five labels."""
    torch.manual_seed(5)
    config = transformers.XLMRobertaConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=130,
        type_vocab_size=1,
        num_labels=5,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("small")
    transformers.XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder
