"""`pseudo-perplexity` against a loop over transformers' masked model, one masked sequence at a time."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import TOKENIZER
from tests.tasks.language_models import LONG, TEXTS, same_bits_in_any_batch, save_causal, save_masked
from xlmr_ray import UserError, pipeline
from xlmr_ray.tasks import pseudo_perplexity

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return save_masked(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def reference(masked):
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(masked).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    return model, tokenizer


@torch.no_grad()
def guesses(model, ids, places, mask):
    """Log-probabilities of the tokens at `places`, all masked at once."""
    hidden = torch.tensor([ids])
    hidden[0, places] = mask
    scores = model(hidden).logits[0].log_softmax(-1)
    return [scores[place, ids[place]].item() for place in places]


def test_one_token_at_a_time_is_exact(masked, reference):
    model, tokenizer = reference
    got = pipeline("pseudo-perplexity", masked, device="cpu", passes="all")([*TEXTS, LONG])
    for text, answer in zip([*TEXTS, LONG], got, strict=True):
        ids = tokenizer(text, truncation=True, max_length=64)["input_ids"]
        each = [guesses(model, ids, [place], tokenizer.mask_token_id)[0] for place in range(1, len(ids) - 1)]
        assert answer["tokens"] == len(ids) - 2
        assert math.log(answer["perplexity"]) == pytest.approx(-np.mean(each), abs=TOLERANCE)
        assert answer["log_likelihood"] == pytest.approx(sum(each), abs=TOLERANCE * len(ids))


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_few_passes_mask_every_so_manieth_token(masked, reference, passes):
    model, tokenizer = reference
    got = pipeline("pseudo-perplexity", masked, device="cpu", passes=passes)(TEXTS)
    for text, answer in zip(TEXTS, got, strict=True):
        ids = tokenizer(text)["input_ids"]
        each = []
        for first in range(1, min(passes, len(ids) - 2) + 1):
            places = list(range(first, len(ids) - 1, passes))
            each += guesses(model, ids, places, tokenizer.mask_token_id)
        assert answer["tokens"] == len(each) == len(ids) - 2
        assert math.log(answer["perplexity"]) == pytest.approx(-np.mean(each), abs=TOLERANCE)


def test_as_many_passes_as_tokens_are_exact(masked):
    exact = pipeline("pseudo-perplexity", masked, device="cpu", passes="all").table(TEXTS)
    assert pipeline("pseudo-perplexity", masked, device="cpu", passes=62).table(TEXTS).equals(exact)


@pytest.mark.parametrize(("max_length", "stride"), [(40, None), (40, 0), (20, 7), (20, 17), (3, 0)])
def test_every_token_of_a_long_text_is_scored_once_where_it_has_more_around_it(masked, reference, max_length, stride):
    model, tokenizer = reference
    text = LONG[: 6 * max_length]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    room = max_length - 2
    shared = room // 8 if stride is None else stride
    starts = [0]
    while starts[-1] + room < len(ids):
        starts.append(starts[-1] + room - shared)
    scores = {}
    for number, start in enumerate(starts):
        window = [0, *ids[start : start + room], 2]
        for place in range(1, len(window) - 1):
            token = start + place - 1
            seen_before = number > 0 and token < start + shared // 2
            seen_after = number + 1 < len(starts) and token >= starts[number + 1] + shared // 2
            if not seen_before and not seen_after:
                assert token not in scores
                scores[token] = guesses(model, window, [place], tokenizer.mask_token_id)[0]
    assert sorted(scores) == list(range(len(ids)))
    options = {"long": "windows", "max_length": max_length, **({} if stride is None else {"stride": stride})}
    pipe = pipeline("pseudo-perplexity", masked, device="cpu", passes="all", **options)
    (row,) = pipe.table([text]).to_pylist()
    assert row["tokens"] == len(ids)
    assert row["windows"] == len(starts)
    assert row["truncated"] is False
    assert math.log(row["perplexity"]) == pytest.approx(-np.mean(list(scores.values())), abs=TOLERANCE)


def test_the_output_table(masked):
    pipe = pipeline("pseudo-perplexity", masked, device="cpu")
    table = pipe.table(["", "Hello World!", LONG])
    numbers = [("perplexity", pa.float64()), ("log_likelihood", pa.float64()), ("tokens", pa.int32())]
    assert table.schema == pipe.task.schema == pa.schema([*numbers, ("truncated", pa.bool_())])
    assert table["truncated"].to_pylist() == [False, False, True]
    # Nothing to guess in an empty text: no number, rather than a perfect one.
    assert table.to_pylist()[0] == {"perplexity": None, "log_likelihood": 0.0, "tokens": 0, "truncated": False}
    assert pipe.table([]).schema == table.schema


@pytest.mark.parametrize("options", [{"passes": 3}, {"passes": "all"}, {"long": "windows", "max_length": 24}])
def test_bits_do_not_depend_on_the_batch(masked, options):
    pipe = pipeline("pseudo-perplexity", masked, device="cpu", **options)
    same_bits_in_any_batch(pipe, [*TEXTS, LONG[:150], ""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pases": 3}, "no option 'pases', did you mean 'passes'"),
        ({"passes": 0}, "passes must be all or a whole number from 1 on, got 0"),
        ({"passes": True}, "passes must be all or a whole number from 1 on, got True"),
        ({"passes": "few"}, "passes must be all or a whole number from 1 on, got 'few'"),
        ({"long": "split"}, "long 'split' is none of cut, windows"),
        ({"stride": 3}, "stride 3 is for windows, and long is cut"),
        ({"long": "windows", "stride": 62}, "stride must be a whole number from 0 to 61"),
        ({"max_length": 2}, "max_length 2 leaves no room for text beside 2 special tokens"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
    ],
)
def test_options_that_do_not_fit(masked, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("pseudo-perplexity", masked, device="cpu", **options)(["a"])


def test_more_tokens_than_a_table_holds(masked, monkeypatch):
    monkeypatch.setattr(pseudo_perplexity, "MOST", 1000)
    pipe = pipeline("pseudo-perplexity", masked, device="cpu", passes=8)
    assert pipe.table([LONG])["tokens"].to_pylist() == [62]
    with pytest.raises(UserError, match="1024 tokens in all passes over 2 documents, 1000 is the most: fewer passes"):
        pipe.table([LONG] * 2)


def test_a_causal_model(tmp_path):
    with pytest.raises(UserError, match=r"is a causal model .* use perplexity"):
        pipeline("pseudo-perplexity", save_causal(tmp_path), device="cpu")


def test_a_checkpoint_without_the_head(plain_encoder):
    with pytest.raises(UserError, match=r"lm_head\."):
        pipeline("pseudo-perplexity", plain_encoder, device="cpu")
