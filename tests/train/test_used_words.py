"""Training only the rows of the word embeddings that are used is training all of them."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.models import make_config
from tests.train.conftest import LANGUAGES, TEXTS, record
from xlmr_ray import XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaForSequenceClassification
from xlmr_ray.train.job import check_finetune_job
from xlmr_ray.train.optimizer import rate_at
from xlmr_ray.train.steps import TrainSteps
from xlmr_ray.train.used_words import UsedRows, decay_of, keep_used, whole_words

WORDS = "roberta.embeddings.word_embeddings.weight"
JOB = {"task": "text-classification", "learning_rate": 0.02, "weight_decay": 0.5, "warmup": 0.25}


@pytest.fixture
def tiny_config() -> XLMRobertaConfig:
    return XLMRobertaConfig.from_dict(make_config().to_dict())


def steps_of(model, table, ids, count, decay):
    """So many steps of AdamW on what comes out of a table."""
    optimizer = torch.optim.AdamW([table.weight], lr=0.01, weight_decay=decay)
    for step in range(count):
        optimizer.param_groups[0]["lr"] = 0.01 * (count - step) / count
        optimizer.zero_grad()
        model(ids[step % len(ids)]).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_table_is_that_of_a_whole_training(tiny_config, decay):
    ids = [torch.tensor([[0, 7, 9, 2]]), torch.tensor([[0, 7, 31, 2]])]
    tables = []
    for part in (False, True):
        torch.manual_seed(0)
        model = XLMRobertaForSequenceClassification(tiny_config)
        whole = keep_used(model, [one.numpy().ravel() for one in ids]) if part else None
        table = model.get_input_embeddings()
        assert isinstance(table, UsedRows) == part
        assert len(table.weight) == (6 if part else tiny_config.vocab_size)  # 0, padding, 2, 7, 9, 31
        steps_of(table, table, ids, 10, decay)
        left = float(np.prod([1 - 0.01 * (10 - step) / 10 * decay for step in range(10)]))
        with whole_words(model, whole, left):
            tables.append(model.get_input_embeddings().weight.detach().clone())
            assert model.state_dict()[WORDS].shape == tables[0].shape
        assert model.get_input_embeddings() is table
    torch.testing.assert_close(tables[1], tables[0], rtol=1e-6, atol=1e-7)


def test_an_id_that_is_not_used_is_an_error(tiny_config):
    model = XLMRobertaForSequenceClassification(tiny_config)
    keep_used(model, [np.array([0, 7, 2], np.int32)])
    with pytest.raises(IndexError):
        model.get_input_embeddings()(torch.tensor([8]))


def test_a_language_model_trains_all_rows(tiny_config):
    model = XLMRobertaForMaskedLM(tiny_config)
    table = model.get_input_embeddings()
    assert keep_used(model, [np.array([0, 7, 2], np.int32)]) is None
    assert model.get_input_embeddings() is table


def test_a_frozen_table_stays(tiny_config):
    model = XLMRobertaForSequenceClassification(tiny_config)
    model.base_model.requires_grad_(False)
    assert keep_used(model, [np.array([0, 7, 2], np.int32)]) is None


def test_decay_is_adamws():
    job = check_finetune_job({**JOB, "model": "m", "train": {"path": "t"}, "output": {"path": "o"}}, "job")
    rows = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.AdamW([rows], weight_decay=0.5)
    steps = TrainSteps.of(10, 2, 4.0, 0)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = rate_at(step, steps.count, job)
        (rows * 0).sum().backward()
        optimizer.step()
    assert decay_of(job, steps, 12) == pytest.approx(rows[0].item(), rel=1e-12)


@pytest.mark.parametrize("early", [False, True])
def test_what_is_saved(make_checkpoint, train, early):
    """Rows of tokens that stand in no example are decayed as often as the others of the weights that are saved."""
    folder = make_checkpoint("XLMRobertaModel")
    more = {"early_stopping": {"patience": 9}, "validation": {"share": 0.25}} if early else {}
    outcome = train({"text": TEXTS, "label": LANGUAGES}, folder, **JOB, epochs=6, batch_size=4, **more)
    before = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    after = load_file(outcome.folder / "model.safetensors")[WORDS]
    assert after.shape == before.shape
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    used = sorted({token for ids in tokenizer(TEXTS)["input_ids"] for token in ids} | {tokenizer.pad_token_id})
    unused = np.setdiff1d(np.arange(len(before)), used)
    done = record(outcome)
    count = len(done["losses"])
    last = count if done["best"] is None else done["history"][done["best"]]["step"]
    warm = int(0.25 * count)
    rates = [0.02 * (i / warm if i < warm else (count - i) / (count - warm)) for i in range(last)]
    decay = np.prod([1 - rate * 0.5 for rate in rates])
    torch.testing.assert_close(after[unused], before[unused] * decay, rtol=1e-6, atol=0)
    assert not torch.allclose(after[used[3:]], before[used[3:]] * decay, rtol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_masked_tokens_become_any(make_checkpoint, train, tied):
    folder = make_checkpoint("XLMRobertaForMaskedLM", tie_word_embeddings=tied)
    outcome = train({"text": TEXTS}, folder, task="fill-mask", epochs=3, batch_size=3)
    assert np.isfinite(record(outcome)["losses"]).all()
