"""Sequences of several callers in one batch: to the last bit what each caller's alone give."""

import numpy as np
import pyarrow as pa
import pytest

from tests.tasks.language_models import save_masked
from xlmr_ray import XLMRobertaTokenizer
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.joint_batch import CallerSequences, compute_together
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.tasks.encoded import ragged, targets_of
from xlmr_ray.tasks.registry import bind_task

CALLERS = (
    ("embedding", {"pooling": "mean"}, ["人人生而自由", "Hello World!"]),
    ("fill-mask", {}, ["a <mask> b", "many <mask> words, and <mask> more " * 4]),
    ("embedding", {"pooling": "cls"}, ["many words " * 30]),
    ("pseudo-perplexity", {}, ["Все люди рождаются", "a"]),
    ("fill-mask", {"top_k": 2}, ["<mask>"]),
    ("embedding", {"pooling": "cls"}, ["a", "b"]),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_masked(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("wanted", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (1, 4), (2, 5), (4, 1, 3), (3,)])
def test_as_each_alone(checkpoint, wanted):
    tokenizer = XLMRobertaTokenizer.from_pretrained(checkpoint)
    tasks = [bind_task(name, checkpoint, options) for name, options, _ in CALLERS]
    tables = [
        task.prepare(pa.table({"text": texts}), tokenizer) for task, (*_, texts) in zip(tasks, CALLERS, strict=True)
    ]
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu"), head_folders=[checkpoint] * len(tasks))
    parts = []
    for place in wanted:
        ids, splits = ragged(tables[place]["input_ids"])
        targets = targets_of(tables[place])
        flat = None if targets is None else ragged(targets)[0]
        parts.append(CallerSequences(tasks[place], place, ids, np.diff(splits), flat))
    for place, got in zip(wanted, compute_together(engine, parts), strict=True):
        alone = engine.run(tables[place]["input_ids"], targets_of(tables[place]), tasks=[place])
        assert np.array_equal(got, alone.raw[0])
