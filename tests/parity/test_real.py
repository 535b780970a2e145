"""A real checkpoint on real text, where they are at hand: `XLMR_RAY_E5` names multilingual-e5-small, `XLMR_RAY_HELP`
a Parquet of pages.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

pytestmark = [
    pytest.mark.skipif("XLMR_RAY_E5" not in os.environ, reason="XLMR_RAY_E5 names no checkpoint"),
    pytest.mark.skipif("XLMR_RAY_HELP" not in os.environ, reason="XLMR_RAY_HELP names no corpus"),
    pytest.mark.timeout(3000),
]


@pytest.fixture(scope="module")
def folder():
    return Path(os.environ["XLMR_RAY_E5"])


@pytest.fixture(scope="module")
def texts():
    most = int(os.environ.get("XLMR_RAY_DOCUMENTS", "160"))
    return pq.read_table(os.environ["XLMR_RAY_HELP"])["text"].slice(0, most)


@pytest.fixture(scope="module")
def engine(folder):
    return Engine.load(folder, [bind_task("embedding", folder, {})], EngineSettings(device="cpu"))


@pytest.fixture(scope="module")
def encoded(engine, folder, texts):
    return engine.tasks[0].prepare(pa.table({"text": texts}), XLMRobertaTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def vectors(engine, encoded):
    return engine.run(encoded["input_ids"]).raw[0]


def test_every_vector_is_transformers(folder, texts, vectors):
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    model = transformers.XLMRobertaModel.from_pretrained(folder, dtype=torch.float32).eval()
    worst = 0.0
    for text, got in zip(texts.to_pylist(), vectors, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        worst = max(worst, float(np.abs(got - wanted).max()))
    assert worst < 1e-5


@pytest.mark.parametrize("budget", [1, 512, 3000, 16384])
def test_the_same_bits_with_every_budget(engine, encoded, vectors, budget):
    before, engine.max_tokens = engine.max_tokens, budget
    try:
        assert np.array_equal(engine.run(encoded["input_ids"]).raw[0], vectors)
    finally:
        engine.max_tokens = before


def test_the_same_bits_with_other_neighbours(engine, encoded, vectors):
    order = np.random.default_rng(3).permutation(len(vectors))
    part = order[: len(order) // 2]
    assert np.array_equal(engine.run(encoded["input_ids"].take(pa.array(part))).raw[0], vectors[part])
