"""The packed layout against the padded one and transformers, whatever the ids: padding ids anywhere in a text."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xlmr_ray import XLMRobertaModel
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task

PAD = 1
# Texts as a tokenizer may make them of any input, padding ids often among them.
IDS = st.lists(st.one_of(st.just(PAD), st.integers(0, 299)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def models(small):
    task = bind_task("feature-extraction", small, {"layers": [-1]})
    theirs = transformers.XLMRobertaModel.from_pretrained(small).eval()
    return Engine.load(small, [task], EngineSettings(device="cpu")), XLMRobertaModel.from_pretrained(small), theirs


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(IDS, min_size=1, max_size=6))
def test_packed_is_padded_is_transformers(models, texts):
    engine, padded, theirs = models
    packed = engine.run(pa.array(texts, pa.list_(pa.int32()))).raw[0]
    ends = np.cumsum([len(text) for text in texts])
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        ours = padded(ids, attention_mask=mask).last_hidden_state
        wanted = theirs(ids, attention_mask=mask).last_hidden_state
    for place, text in enumerate(texts):
        got = packed[ends[place] - len(text) : ends[place]].reshape(len(text), -1)
        assert np.abs(got - wanted[place, : len(text)].numpy()).max() < 1e-5
        assert np.abs(got - ours[place, : len(text)].numpy()).max() < 1e-5
