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
    assert by_name(text="one", text_pair=["two", "three"])[0] == pair
    with pytest.raises(UserError, match="expected lists of equal length for text, text_pair"):
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


def test_labels_second_and_documents_of_a_query():
    zero = pipeline("zero-shot-classification", "embedded:mini/heads/entailment", device="cpu")
    labels = ["human rights", "права человека"]
    got = zero("No one shall be held in slavery.", labels, hypothesis_template="{}")
    assert got["sequence"] == "No one shall be held in slavery."
    assert got["labels"] == labels
    with pytest.raises(UserError, match="got 3 arguments, expected one; give options by keyword"):
        zero("a", labels, "b")
    score = pipeline("rerank", "embedded:mini/heads/relevance", device="cpu")
    documents = ["свобода и равенство людей", "the slave trade shall be prohibited in all its forms"]
    ranked = score({"query": "No one shall be held in slavery.", "documents": documents}, top_n=1)
    assert [one["index"] for one in ranked] == [1]


def test_one_mask_in_a_list_of_one_text_is_not_a_list():
    fill = pipeline("fill-mask", "embedded:mini/heads/masked", device="cpu", top_k=2)
    one = fill("All human <mask> are born free.")
    assert [set(f) for f in one] == [{"score", "token", "token_str", "sequence"}] * 2
    assert fill(["All human <mask> are born free."]) == one
    assert fill(["All human <mask> are born free."] * 2) == [one, one]
