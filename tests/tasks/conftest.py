"""Checkpoints and sentence-transformers folders for the tasks."""

from pathlib import Path

import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from tests.models import add_tokenizer, make_config, save_classifier


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory):
    def make(**values: object) -> Path:
        return save_classifier(tmp_path_factory.mktemp("classifier"), **values)

    return make


@pytest.fixture(scope="session")
def plain_encoder(tmp_path_factory) -> Path:
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("encoder")
    transformers.XLMRobertaModel(make_config()).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="session")
def make_sentence_folder(tmp_path_factory, plain_encoder):
    """A folder as sentence-transformers itself writes it."""

    def make(*, pooling="mean", normalize=True, dense=None, max_seq_length=64, **own: object) -> Path:
        torch.manual_seed(9)
        parts: list[torch.nn.Module] = [modules.Transformer(str(plain_encoder), max_seq_length=max_seq_length)]
        parts.append(modules.Pooling(48, pooling_mode=pooling))
        if dense:
            parts.append(modules.Dense(48, dense, activation_function=torch.nn.Tanh()))
        if normalize:
            parts.append(modules.Normalize())
        folder = tmp_path_factory.mktemp("sentence")
        SentenceTransformer(modules=parts, device="cpu", **own).save(str(folder))
        return folder

    return make
