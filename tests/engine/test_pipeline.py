"""How texts come in and answers go out, as in the reference."""

import pytest
import torch

from tests.models import save_classifier
from xlmr_ray import UserError, XLMRobertaForSequenceClassification, XLMRobertaTokenizer, pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), num_labels=3)


def test_one_text_has_one_answer(checkpoint):
    embed = pipeline("embedding", checkpoint, device=-1)
    assert embed("one").shape == (48,)
    assert [vector.shape for vector in embed(["one", "two"])] == [(48,), (48,)]
    classify = pipeline("sentiment-analysis", checkpoint, device=torch.device("cpu"))
    assert len(classify("one")) == 1  # a list, in the reference, too


def test_options_of_a_call_are_for_that_call(checkpoint):
    classify = pipeline("text-classification", checkpoint, device="cpu", dtype=torch.float32)
    first = classify("one")
    assert [len(ranked) for ranked in classify(["one", "two"], top_k=2)] == [2, 2]
    assert classify("one") == first
    with pytest.raises(UserError, match="no option 'topk', did you mean 'top_k'"):
        classify("one", topk=2)


def test_pairs_are_told_by_what_comes_in_and_roles_by_keyword(checkpoint):
    classify = pipeline("text-classification", checkpoint, device="cpu")
    pair = classify({"text": "one", "text_pair": "two"})
    by_name = pipeline("text-classification", checkpoint, device="cpu", pairs=True)
    assert by_name(text="one", text_pair="two") == pair
    assert by_name(text="one", text_pair=["two", "three"])[0] == pair[0]
    with pytest.raises(UserError, match="lists of equal length are wanted for text, text_pair"):
        by_name(text=["one"], text_pair=["two", "three"])
    with pytest.raises(UserError, match="no text is given"):
        classify()
    with pytest.raises(UserError, match="not both ways"):
        by_name("one", text_pair="two")


def test_a_model_in_memory_is_used_and_not_changed(checkpoint):
    model = XLMRobertaForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = XLMRobertaTokenizer.from_pretrained(checkpoint)
    names = list(model.state_dict())
    got = pipeline("text-classification", model, tokenizer=tokenizer, top_k=None)("one two three")
    wanted = pipeline("text-classification", checkpoint, device="cpu", top_k=None)("one two three")
    assert list(model.state_dict()) == names
    for ours, theirs in zip(got[0], wanted[0], strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
    with pytest.raises(UserError, match="needs a tokenizer="):
        pipeline("text-classification", model)
    with pytest.raises(UserError, match="a XLMRobertaForSequenceClassification, without 'lm_head'"):
        pipeline("fill-mask", model, tokenizer=tokenizer)
