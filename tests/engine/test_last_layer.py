"""The last layer where a head reads: the same bits as the whole of it."""

import numpy as np
import pyarrow as pa
import pytest

from tests.models import save_classifier
from tests.tasks.language_models import save_causal, save_masked
from xlmr_ray import XLMRobertaConfig, XLMRobertaTokenizer
from xlmr_ray.engine import engine as module
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.last_layer import rows_read
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.packed_batch import pack
from xlmr_ray.tasks.encoded import targets_of
from xlmr_ray.tasks.registry import bind_task

TEXTS = ["Hello World!", "many words " * 30, "人人生而自由", "Все люди рождаются " * 9, "other words " * 28]
MASKED = ["one <mask> in " + "many words " * 27, "a <mask> b", "<mask> with " + "other words " * 25]
CASES = [
    ("text-classification", {}, save_classifier, TEXTS, True),
    ("embedding", {"pooling": "cls"}, save_classifier, TEXTS, True),
    ("embedding", {"pooling": "mean"}, save_classifier, TEXTS, False),
    ("fill-mask", {}, save_masked, MASKED, True),
    ("perplexity", {}, save_causal, TEXTS, False),
]


def with_and_without(task, folder, texts, monkeypatch, **options):
    """The results with the rows that are read alone, whether there were such, and the results of the whole layer."""
    encoded = task.prepare(pa.table({"text": texts * 3}), XLMRobertaTokenizer.from_pretrained(folder))
    engine = Engine.load(folder, [task], EngineSettings(device="cpu", **options))
    seen = []
    monkeypatch.setattr(module, "rows_read", lambda *given: seen.append(rows_read(*given)) or seen[-1])
    got = engine.run(encoded["input_ids"], targets_of(encoded)).raw[0]
    monkeypatch.setattr(module, "rows_read", lambda *_: None)
    wanted = engine.run(encoded["input_ids"], targets_of(encoded)).raw[0]
    return got, any(rows is not None for rows in seen), wanted


@pytest.mark.parametrize(("name", "options", "save", "texts", "fewer"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_as_the_whole_layer(name, options, save, texts, fewer, tmp_path, monkeypatch):
    folder = save(tmp_path)
    got, were_fewer, wanted = with_and_without(bind_task(name, folder, options), folder, texts, monkeypatch)
    assert were_fewer == fewer
    assert np.array_equal(got, wanted)
    assert np.isfinite(got).all()


def test_as_the_whole_layer_in_eight_bits(tmp_path, monkeypatch):
    folder = save_classifier(tmp_path, hidden_size=64)
    task = bind_task("text-classification", folder, {})
    got, were_fewer, wanted = with_and_without(task, folder, TEXTS, monkeypatch, quantization="int8")
    assert were_fewer
    assert np.array_equal(got, wanted)


def batch(*lengths, targets=None):
    ids = np.arange(sum(lengths), dtype=np.int32)
    splits = np.cumsum([0, *lengths])
    return pack(ids, splits, np.arange(len(lengths)), XLMRobertaConfig(), targets=targets)


def test_rows_are_those_that_are_read_and_a_multiple_of_16():
    rows = rows_read(batch(50, 60, 70), {"first"})
    assert (rows.tolist(), len(rows)) == ([0, 50, 110, *[110] * 13], 16)
    assert rows_read(batch(50, 60, 70), {"first", "all"}) is None
    assert rows_read(batch(2, 2, 2), {"first"}) is None  # as many with the filler
    targets = np.full(100, -100, np.int32)
    targets[[3, 99]] = 5
    assert sorted({*rows_read(batch(40, 60, targets=targets), {"first", "target"}).tolist()}) == [0, 3, 40, 99]
