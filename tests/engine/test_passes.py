"""Tasks on one engine: the same results as each task alone, and no sequence computed twice."""

import numpy as np
import pyarrow as pa
import pytest

from tests.models import save_classifier
from xlmr_ray import XLMRobertaTokenizer
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.registry import bind_task

TEXTS = ["Hello World!", "many words " * 60, "人人生而自由", "Hello World!", "a", "Все люди рождаются " * 9]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), num_labels=3)


def encoded(checkpoint, tasks):
    tokenizer = XLMRobertaTokenizer.from_pretrained(checkpoint)
    return [task.prepare(pa.table({"text": TEXTS}), tokenizer) for task in tasks]


@pytest.mark.parametrize(
    "lengths",
    [(64, 64, 64), (64, 16, 64), (64, 8, 16)],
    ids=["the same cut", "another cut of the longest two", "three cuts"],
)
def test_as_each_alone_and_each_sequence_once(checkpoint, lengths):
    names = ("text-classification", "embedding", "embedding")
    options = ({}, {"pooling": "mean"}, {"pooling": "cls", "normalize": True})
    tasks = [
        bind_task(name, checkpoint, {**option, "max_length": length})
        for name, option, length in zip(names, options, lengths, strict=True)
    ]
    tables = encoded(checkpoint, tasks)
    together = Engine.load(checkpoint, tasks, EngineSettings(device="cpu"), head_folders=[checkpoint] * 3)
    results = together.results(tables)
    distinct = {tuple(ids) for table in tables for ids in table["input_ids"].to_pylist()}
    assert together.stats.sequences == len(distinct)
    assert together.stats.repeated == len(tables[0]["input_ids"][0])  # the text that is there twice
    for task, table, got in zip(tasks, tables, results, strict=True):
        alone = Engine.load(checkpoint, [task], EngineSettings(device="cpu")).run(table["input_ids"])
        assert np.array_equal(got.raw, alone.raw[0])  # to the last bit
        assert got.failed == {}


def test_a_sequence_that_fails_is_named_in_each_task(checkpoint, monkeypatch):
    tasks = [bind_task("embedding", checkpoint, {"max_length": length}) for length in (64, 8)]
    tables = encoded(checkpoint, tasks)
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu"))
    real = Engine.compute

    def poisoned(self, batch, places):
        outputs = [output.clone() for output in real(self, batch, places)]
        for output in outputs:
            output[[i for i, length in enumerate(batch.lengths) if length == 3]] = float("nan")
        return outputs

    monkeypatch.setattr(Engine, "compute", poisoned)
    lengths = [[len(ids) for ids in table["input_ids"].to_pylist()] for table in tables]
    for of_task, got in zip(lengths, engine.results(tables), strict=True):
        assert sorted(got.failed) == [i for i, length in enumerate(of_task) if length == 3] != []
