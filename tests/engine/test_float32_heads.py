"""An encoder of 16 bits has heads of 32: two sequences have the same score only where they do in float32."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from xlmr_ray import XLMRobertaForSequenceClassification
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task

SEQUENCES = 150


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """A reranker in XLM-R's layout, one in BERT's, a model that finds answers."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
    }
    made = {
        "xlm-roberta": transformers.XLMRobertaForSequenceClassification(
            transformers.XLMRobertaConfig(**sizes, type_vocab_size=1, num_labels=1)
        ),
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, num_labels=1)),
        "answers": transformers.XLMRobertaForQuestionAnswering(
            transformers.XLMRobertaConfig(**sizes, type_vocab_size=1)
        ),
    }
    folders = {}
    for name, model in made.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


def sequences():
    random = np.random.default_rng(0)
    lists = [[0, *random.integers(4, 300, random.integers(3, 9)).tolist(), 2] for _ in range(SEQUENCES)]
    assert len(set(map(tuple, lists))) == SEQUENCES
    return pa.array(lists, pa.list_(pa.int32()))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["xlm-roberta", "bert", "answers"])
def test_scores_have_no_more_ties_than_in_float32(layouts, name, dtype):
    folder = layouts[name]
    task = bind_task("question-answering" if name == "answers" else "rerank", folder, {})
    raw = {}
    for kind in ("float32", dtype):
        engine = Engine.load(folder, [task], EngineSettings(device="cpu", dtype=kind))
        assert str(engine.dtype) == f"torch.{kind}"
        raw[kind] = engine.run(sequences()).raw[0]
    assert np.abs(raw[dtype] - raw["float32"]).max() < 0.2
    ties = {kind: len(raw[kind].ravel()) - len(np.unique(raw[kind])) for kind in raw}
    assert ties[dtype] <= ties["float32"]


def test_a_head_has_the_weights_of_the_file(layouts):
    """Not rounded to the encoder's dtype; with those of 16 bits, and for a model in memory, as they are."""
    folder = layouts["xlm-roberta"]
    task = bind_task("rerank", folder, {})
    loaded = Engine.load(folder, [task, dataclasses.replace(task)], EngineSettings(device="cpu", dtype="bfloat16"))
    stored = XLMRobertaForSequenceClassification.from_pretrained(folder)
    rounded = XLMRobertaForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    in_memory = Engine.of(rounded, [task])
    for engine, model in ((loaded, stored), (in_memory, rounded)):
        for head in engine.heads:
            for key, got in head.get_submodule("classifier").state_dict().items():
                assert got.dtype is torch.float32
                assert torch.equal(got, model.classifier.state_dict()[key].float()), key
    assert rounded.classifier.dense.weight.dtype is torch.bfloat16
    assert len(np.unique(in_memory.run(sequences()).raw[0])) == SEQUENCES
