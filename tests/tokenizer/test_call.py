"""Calls against transformers' own tokenizer, loaded from the same tokenizer.json, which it keeps as it is."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, TensorType

from tests.tokenizer.cases import ALL, MANY, MIXED, TEXTS, same
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


@pytest.mark.parametrize(
    "options",
    [
        {},
        ALL,
        {"add_special_tokens": False},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "truncation": True, "return_tensors": "np"},
        {"padding": "max_length", "max_length": 20},
        {"max_length": 6},
        {"truncation": "longest_first", "max_length": 7, "return_overflowing_tokens": True, "stride": 2, **ALL},
        {"truncation": "only_first", "max_length": 7, "padding": "longest", "pad_to_multiple_of": 7},
        {"padding": "longest", "padding_side": "left", "pad_to_multiple_of": 8, "return_attention_mask": False},
    ],
)
def test_a_batch(ours, theirs, options) -> None:
    same(ours, theirs, TEXTS, **options)


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second", "do_not_truncate", False])
@pytest.mark.parametrize("overflow", [False, True])
def test_pairs(ours, theirs, strategy, overflow) -> None:
    long = "the rights of all people in the world are equal"
    first = ["a b", long, long * 2, "x", long] if strategy != "only_first" else [long] * 5
    second = [long, "c", long, "y", long * 3] if strategy != "only_second" else [long * 2] * 5
    if strategy == "only_first":
        second = ["a"] * 5
    if strategy == "only_second":
        first = ["a"] * 5
    options = {"truncation": strategy, "max_length": 13, "return_overflowing_tokens": overflow, **ALL}
    same(ours, theirs, first, second, stride=2 if overflow else 0, **options)


def test_single_texts_words_and_empty_pairs(ours, theirs) -> None:
    for text in TEXTS:
        same(ours, theirs, text, **ALL)
        same(ours, theirs, text, "second", return_tensors="pt")
    same(ours, theirs, "one", "")
    same(ours, theirs, ["one"], [""])
    same(ours, theirs, ["some", "words", "in", "Straßburg"], is_split_into_words=True, **ALL)
    same(ours, theirs, [["some", "words"], ["of", "two"]], is_split_into_words=True, padding=True)
    same(ours, theirs, [["who"], ["what"]], [["some", "words"], ["of", "two"]], is_split_into_words=True)


@MANY
@given(data=st.data())
def test_any_text_and_pair(ours, theirs, data) -> None:
    text, pair = data.draw(MIXED), data.draw(st.none() | MIXED)
    same(ours, theirs, text, pair, **ALL)
    stride = data.draw(st.integers(0, 2))
    length = data.draw(st.integers(12, 30))
    same(ours, theirs, text, pair, truncation=True, max_length=length, stride=stride, return_overflowing_tokens=True)
    ids = ours(text, pair).input_ids
    for skip in (False, True):
        for clean in (None, False, True):
            assert ours.decode(ids, skip, clean) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean
            )


def test_empty_batch(ours) -> None:
    assert ours([]).data == {"input_ids": [], "attention_mask": []}
    assert ours([], return_tensors="pt").input_ids.dtype == torch.int64


def test_threads_with_different_settings_do_not_disturb_each_other(ours) -> None:
    text = "human rights are for all people " * 10

    def length_of(wanted: int) -> tuple[int, int]:
        padded = ours("a", padding="max_length", truncation=True, max_length=wanted)
        return len(padded.input_ids), len(ours(text, truncation=True, max_length=wanted).input_ids)

    wanted = [8 + i % 40 for i in range(400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(length_of, wanted)) == [(length, length) for length in wanted]


def test_pairs_in_a_list(ours, theirs) -> None:
    long = "human rights for all " * 9
    for items in ([("a", "b"), (long, "c")], [["a b", "c"], ["d", long]], [("a", "b"), "alone", ("c", "d")]):
        same(ours, theirs, items, **ALL)
        same(ours, theirs, items, truncation=True, max_length=14, padding=True, return_tensors="np")
    words = [(["who", "is"], ["it"]), (["a"], ["b", "c"])]
    same(ours, theirs, words, is_split_into_words=True, **ALL)
    same(ours, theirs, ("a", "b c"), **ALL)
    same(ours, theirs, ["a", "", "b"], ["", "c", ""], **ALL)


def test_targets(ours, theirs) -> None:
    long = "human rights for all " * 9
    for arguments in (
        {"text": "a b", "text_target": long},
        {"text": ["a b", "c"], "text_target": ["d", long]},
        {"text_target": ["d", long], "text_pair_target": ["e", "f"]},
        {"text": ["a"], "text_pair": ["b"], "text_target": ["c"], "text_pair_target": ["d"]},
    ):
        for options in ({}, {"truncation": True, "max_length": 12, "max_target_length": 8}, {"padding": True}):
            expected, actual = theirs(**arguments, **options), ours(**arguments, **options)
            assert dict(actual) == dict(expected)
    with pytest.raises(UserError, match="text=None"):
        ours()


def test_one_text_to_ids(ours, theirs) -> None:
    long = "human rights for all " * 9
    for options in (
        {},
        {"return_tensors": "pt"},
        {"add_special_tokens": False},
        {"max_length": 9},
        {"truncation": True, "max_length": 9, "stride": 2, "return_overflowing_tokens": True},
        {"padding": "max_length", "max_length": 90, "padding_side": "left"},
        {"padding": True, "pad_to_multiple_of": 8},
    ):
        expected, actual = theirs.encode(long, "pair", **options), ours.encode(long, "pair", **options)
        assert str(actual) == str(expected)
    assert ours.encode("a", None, False, "max_length", True, 9) == theirs.encode(
        "a", None, False, "max_length", True, 9
    )
    words = ["some", "words"]
    assert ours.encode(words, is_split_into_words=True) == theirs.encode(words, is_split_into_words=True)
    assert ours.tokenize(words, is_split_into_words=True) == theirs.tokenize(words, is_split_into_words=True)
    assert ours.tokenize("a", "b", add_special_tokens=True) == theirs.tokenize("a", "b", add_special_tokens=True)


def test_the_references_enumerations_do_as_well(ours) -> None:
    chosen = ours(
        ["a", "a b c d e"],
        padding=PaddingStrategy.LONGEST,
        truncation=TruncationStrategy.ONLY_FIRST,
        max_length=5,
        return_tensors=TensorType.NUMPY,
    )
    assert chosen.input_ids.shape == (2, 5)


def test_what_is_too_long_is_said_once(small, caplog) -> None:
    caplog.set_level("WARNING")  # Ray, where it was started before, raises it
    tokenizer = XLMRobertaTokenizer.from_pretrained(small, model_max_length=6)
    for _ in range(2):
        tokenizer("human rights for all of us")
    tokenizer("human rights for all of us", truncation=True)
    assert len(caplog.records) == 1
    assert "the model takes 6: pass truncation=True" in caplog.text
    tokenizer(["a"], padding=True, max_length=3)
    assert "max_length=3 does nothing" in caplog.records[1].getMessage()
