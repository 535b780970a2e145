"""Special and added tokens: set, added, matched, split, saved."""

import pickle
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast
from transformers import XLMRobertaTokenizer as Reference

from tests.tokenizer.cases import SPECIAL, TEXTS, same
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer


@pytest.fixture
def both(small: Path):
    """Ours and theirs, new for each test, since tokens are added to them."""
    file = str(small / "tokenizer.json")
    names = ["input_ids", "attention_mask"]
    return XLMRobertaTokenizer(tokenizer_file=file), PreTrainedTokenizerFast(
        tokenizer_file=file, model_input_names=names, **SPECIAL
    )


ADDED = [
    ["newtoken", "other"],
    "single",
    AddedToken("strip", lstrip=True, rstrip=True),
    [AddedToken("word", single_word=True), AddedToken("ﬁnormal", normalized=True)],
    ["▁the", "<s>", "the"],
    [],
]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("tokens", ADDED, ids=str)
def test_added_tokens(both, tokens, special) -> None:
    ours, theirs = both
    assert ours.add_tokens(tokens, special_tokens=special) == theirs.add_tokens(tokens, special_tokens=special)
    assert len(ours) == len(theirs)
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert str(ours.added_tokens_decoder) == str(dict(sorted(theirs.added_tokens_decoder.items())))
    texts = [
        *TEXTS,
        "a newtoken b, strip sword word. finormal singles",
        "newtokenother</s>the the",
        "x" * 99,
    ]
    same(ours, theirs, texts)
    same(ours, theirs, texts, texts[::-1], truncation=True, max_length=20, padding=True)
    for row in ours(texts).input_ids:
        assert ours.decode(row, True) == theirs.decode(row, skip_special_tokens=True)
    ragged = ours.encode_ragged(texts, max_length=30)
    assert ragged.input_ids.tolist() == [
        token for row in theirs(texts, truncation=True, max_length=30).input_ids for token in row
    ]
    again = pickle.loads(pickle.dumps(ours))
    assert again(texts).data == ours(texts).data
    assert again.fingerprint == ours.fingerprint


def test_special_tokens_are_added_and_named(both, tmp_path) -> None:
    ours, theirs = both
    before = ours.fingerprint
    for asked in (
        {"pad_token": "[PAD]", "cls_token": AddedToken("[CLS]", lstrip=True)},
        {"extra_special_tokens": ["[ONE]", AddedToken("[TWO]")]},
        {"additional_special_tokens": ["[THREE]"]},
        {"sep_token": "</s>"},
        {},
    ):
        assert ours.add_special_tokens(asked) == theirs.add_special_tokens(asked), asked
        assert ours.special_tokens_map == theirs.special_tokens_map
        assert ours.extra_special_tokens == theirs.extra_special_tokens
        assert ours.all_special_tokens == theirs.all_special_tokens
        assert ours.all_special_ids == theirs.all_special_ids
    asked = {"extra_special_tokens": ["[THREE]", "[FOUR]"]}
    assert ours.add_special_tokens(asked, replace_extra_special_tokens=False) == theirs.add_special_tokens(
        asked, replace_extra_special_tokens=False
    )
    assert ours.extra_special_tokens == theirs.extra_special_tokens == ["[THREE]", "[FOUR]"]
    assert ours.extra_special_tokens_ids == theirs.extra_special_tokens_ids
    texts = ["a [ONE] [TWO] b[FOUR]", "[PAD] [CLS]x"]
    same(ours, theirs, texts, padding=True)
    assert ours.fingerprint != before
    ours.save_pretrained(tmp_path)
    again = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert again(texts, padding=True).data == ours(texts, padding=True).data
    assert again.special_tokens_map == ours.special_tokens_map
    assert again.all_special_ids == ours.all_special_ids


def test_special_tokens_are_set(both) -> None:
    ours, theirs = both
    for tokenizer in both:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.cls_token_id = 40
        tokenizer.unk_token = AddedToken("<unk>")
        tokenizer.mask_token = None
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert (ours.pad_token_id, ours.cls_token) == (2, theirs.cls_token)
    assert (ours.mask_token, ours.mask_token_id) == (theirs.mask_token, theirs.mask_token_id) == (None, None)
    same(ours, theirs, ["a", "a b c"], padding=True)
    for tokenizer in both:
        tokenizer.bos_token = "not in the vocabulary"
        tokenizer.pad_token = None
    assert ours.bos_token_id == theirs.bos_token_id == 3
    with pytest.raises(UserError, match="no pad_token; set one"):
        ours(["a", "a b"], padding=True)
    with pytest.raises(UserError, match="pad_token: expected a str or an AddedToken, got int"):
        ours.pad_token = 5
    with pytest.raises(UserError, match="pad_token_id=99999999: the vocabulary has no such id"):
        ours.pad_token_id = 99999999


def test_special_tokens_in_a_text_split_on_demand(both, small) -> None:
    ours, theirs = both
    always = XLMRobertaTokenizer.from_pretrained(small, split_special_tokens=True)
    text = "a </s> b<s>c <mask> d <pad>"
    plain = theirs(text, split_special_tokens=True).input_ids
    assert ours(text, split_special_tokens=True).input_ids == plain
    assert ours.encode(text, split_special_tokens=True) == plain
    assert ours.tokenize(text, split_special_tokens=True) == theirs.tokenize(text, split_special_tokens=True)
    # Not found before the text is normalized and split, they are still pieces of XLM-R's vocabulary, of score 0.
    assert 2 in plain[1:-1]
    assert ours(text).input_ids == theirs(text, split_special_tokens=False).input_ids != plain
    assert always(text).input_ids == always.encode_ragged([text], max_length=99).input_ids.tolist() == plain
    assert always(text, split_special_tokens=False).input_ids == ours(text).input_ids
    assert pickle.loads(pickle.dumps(always))(text).input_ids == plain
    assert always.fingerprint != XLMRobertaTokenizer.from_pretrained(small).fingerprint


@pytest.mark.parametrize(
    "options",
    [
        {"mask_token": AddedToken("<mask>", lstrip=True), "bos_token": AddedToken("<s>")},
        {"pad_token": "[PAD]", "mask_token": "[MASK]", "extra_special_tokens": ["<x>", AddedToken("<y>", rstrip=True)]},
        {"additional_special_tokens": ["<x>"]},
        {"extra_special_tokens": {"image_token": "<image>"}},
        {"mask_token": None},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        {"model_max_length": 7, "padding_side": "left", "truncation_side": "left"},
    ],
    ids=str,
)
def test_tokens_given_to_the_constructor(small, options) -> None:
    vocabulary = [(f"▁{word}", -1.0 - place) for place, word in enumerate(["a", "b", "<", "x", "y"])]
    vocabulary = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), *vocabulary, ("<mask>", 0.0)]
    ours, theirs = XLMRobertaTokenizer(vocabulary, **options), Reference(vocabulary, **options)
    texts = ["a b <mask> a", "a [MASK] <x> b <y> a <image> [PAD]", "b <s> </s> a a a a"]
    same(ours, theirs, texts, padding=True, truncation=True)
    assert len(ours) == len(theirs)
    assert ours.all_special_ids == theirs.all_special_ids
    same(ours, theirs, texts, padding="max_length", truncation=True, max_length=9)


def test_wrong_tokens_are_refused(both) -> None:
    ours, _ = both
    for call, said in (
        (lambda: ours.add_tokens([5]), "add_tokens: expected a str or an AddedToken, got int"),
        (lambda: ours.add_special_tokens({"padding_token": "x"}), "padding_token: no special token's name"),
        (lambda: ours.add_special_tokens({"pad_token": ["x"]}), "pad_token: expected a token"),
        (lambda: ours.add_special_tokens({"extra_special_tokens": "x"}), "extra_special_tokens: expected a list"),
        (lambda: XLMRobertaTokenizer(pad_token=5), "pad_token: expected a str"),
        (lambda: XLMRobertaTokenizer(padding_side="up"), "padding_side='up': expected one of right, left"),
    ):
        with pytest.raises(UserError, match=said):
            call()
    assert len(ours) == 20_000
