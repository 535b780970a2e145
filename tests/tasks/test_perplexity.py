"""`perplexity` against transformers' causal model with `labels=input_ids`, and against the loop of its guide on models
of fixed length.
"""

import math

import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import TOKENIZER
from tests.tasks.language_models import LONG, TEXTS, same_bits_in_any_batch, save_causal, save_masked
from xlmr_ray import UserError, pipeline
from xlmr_ray.model.heads import LMHead
from xlmr_ray.tasks.likelihood import CHUNK

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def reference(causal):
    model = transformers.XLMRobertaForCausalLM.from_pretrained(causal).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    return model, tokenizer


@torch.no_grad()
def loss(model, ids, labels):
    return model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()


def test_perplexity_is_the_exponential_of_the_references_loss(causal, reference):
    model, tokenizer = reference
    got = pipeline("perplexity", causal, device="cpu")([*TEXTS, "", LONG])
    for text, answer in zip([*TEXTS, "", LONG], got, strict=True):
        ids = tokenizer(text, truncation=True, max_length=64)["input_ids"]
        wanted = loss(model, ids, ids)
        assert math.log(answer["perplexity"]) == pytest.approx(wanted, abs=TOLERANCE)
        assert answer["tokens"] == len(ids) - 1
        assert answer["log_likelihood"] == pytest.approx(-wanted * (len(ids) - 1), abs=TOLERANCE * len(ids))


@pytest.mark.parametrize(("max_length", "stride"), [(40, None), (64, 1), (20, 19), (20, 7), (2, 1)])
def test_windows_are_those_of_the_guide(causal, reference, max_length, stride):
    model, tokenizer = reference
    ids = tokenizer(LONG)["input_ids"]
    text = tokenizer.decode(ids[: 4 * max_length], skip_special_tokens=True)
    ids = tokenizer(text)["input_ids"]
    step = max_length - (max_length // 2 if stride is None else stride)
    total, scored, before, windows = 0.0, 0, 0, 0
    for begin in range(0, len(ids), step):
        end = min(begin + max_length, len(ids))
        labels = [-100] * (before - begin) + ids[max(before, begin) : end]
        # The first token of all has nothing before it, and does not count; every other one does, once.
        count = end - before - (begin == 0)
        total += loss(model, ids[begin:end], labels) * count
        scored += count
        before, windows = end, windows + 1
        if end == len(ids):
            break
    options = {} if stride is None else {"stride": stride}
    pipe = pipeline("perplexity", causal, device="cpu", long="windows", max_length=max_length, **options)
    (row,) = pipe.table([text]).to_pylist()
    assert row["tokens"] == scored == len(ids) - 1
    assert math.log(row["perplexity"]) == pytest.approx(total / scored, abs=TOLERANCE)
    assert row["windows"] == windows
    assert row["truncated"] is False


def test_the_output_table(causal):
    pipe = pipeline("perplexity", causal, device="cpu")
    table = pipe.table(["Hello", LONG])
    numbers = [("perplexity", pa.float64()), ("log_likelihood", pa.float64()), ("tokens", pa.int32())]
    assert table.schema == pipe.task.schema == pa.schema([*numbers, ("truncated", pa.bool_())])
    assert table["truncated"].to_pylist() == [False, True]
    assert table["tokens"].to_pylist()[1] == 63
    windows = pipeline("perplexity", causal, device="cpu", long="windows")
    assert windows.table([]).schema == windows.task.schema
    assert windows.task.schema.names[-1] == "windows"


@pytest.mark.parametrize("options", [{}, {"long": "windows", "max_length": 24}])
def test_bits_do_not_depend_on_the_batch(causal, options):
    pipe = pipeline("perplexity", causal, device="cpu", **options)
    same_bits_in_any_batch(pipe, [*TEXTS, LONG, ""])


def test_logits_are_made_for_few_tokens_at_a_time(causal, monkeypatch):
    rows = []
    real = LMHead.forward

    def counted(self, hidden):
        rows.append(len(hidden))
        return real(self, hidden)

    pipe = pipeline("perplexity", causal, device="cpu")
    texts = [f"{number} {LONG}" for number in range(9)]  # equal ones would be computed once
    wanted = pipe.table(texts)
    monkeypatch.setattr(LMHead, "forward", counted)
    assert pipe.table(texts).equals(wanted)
    assert sum(rows) >= 9 * 63 > 2 * CHUNK
    assert max(rows) == CHUNK


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strid": 3}, "no option 'strid', did you mean 'stride'"),
        ({"long": "split"}, "long 'split' is none of cut, windows"),
        ({"stride": 3}, "stride 3 is for windows, and long is cut"),
        ({"long": "windows", "stride": 0}, "stride must be a whole number from 1 on, got 0"),
        ({"long": "windows", "stride": 64}, "stride 64 must be less than the 64 tokens of a window"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
        ({"max_length": 0}, "max_length must be a whole number from 1 on, got 0"),
    ],
)
def test_options_that_do_not_fit(causal, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("perplexity", causal, device="cpu", **options)(["a"])


def test_a_model_that_is_not_causal(tmp_path):
    with pytest.raises(UserError, match=r"is no causal model .* use pseudo-perplexity"):
        pipeline("perplexity", save_masked(tmp_path), device="cpu")
