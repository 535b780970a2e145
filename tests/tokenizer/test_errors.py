"""One clear line for what cannot be done."""

import pickle

import pytest

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import TokenizerError


def test_the_text_at_fault_is_named(ours) -> None:
    for call in (ours, lambda texts: ours.encode_ragged(texts, max_length=8)):
        with pytest.raises(TokenizerError, match=r"text 2 .*U\+D800 at character 3") as caught:
            call(["fine", "too", "bad\ud800", "fine"])
        assert caught.value.index == 2
        with pytest.raises(TokenizerError, match=r"text 1 .*expected str, got int"):
            call(["fine", 5])
    with pytest.raises(TokenizerError) as caught:
        ours.encode_ragged(["a", "b"], ["c", "\udfff"], max_length=8)
    assert caught.value.index == 1
    # Few tokens before the first cut, so the bad character is met only when the text is taken up again.
    gaps = "a" + " " * 30 + "b c" + " " * 30 + "d \ud800 " + "e f " * 40
    with pytest.raises(TokenizerError, match=r"text 1 .*D800") as later:
        ours.encode_ragged(["fine", gaps], max_length=12)
    assert later.value.index == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.index, again.reason) == (1, caught.value.reason)


def test_a_panic_in_the_library_is_an_ordinary_exception(ours) -> None:
    # A stride within the window but not within half of it, which is a text's share: the library asserts.
    long = "human rights for all people " * 4
    with pytest.raises(TokenizerError, match=r"text 1 .*stride") as caught:
        ours.encode_ragged(["a", long], ["b", long], max_length=14, stride=7, overflow=True)
    assert isinstance(caught.value, UserError)
    assert caught.value.index == 1
    assert len(ours.encode_ragged(["a", long], ["b", long], max_length=14)) == 2


def test_what_no_text_could_satisfy_is_said_at_once(ours) -> None:
    for options, said in (
        ({"max_length": 1}, "no room for 2 special tokens"),
        ({"max_length": 8, "stride": 6}, "stride=6"),
        ({"max_length": 8, "truncation": "sometimes"}, "longest_first"),
    ):
        with pytest.raises(UserError, match=said):
            ours.encode_ragged(["a"], **options)
    with pytest.raises(UserError, match="1 texts and 2 pairs"):
        ours.encode_ragged(["a"], ["b", "c"], max_length=8)
    with pytest.raises(TokenizerError, match=r"text 1 .*only_second"):
        ours.encode_ragged(["a", "a " * 20], max_length=8, truncation="only_second")
    with pytest.raises(TokenizerError, match=r"text 0 .*second text by itself"):
        ours.encode_ragged(["a b"], ["c " * 20], max_length=8, truncation="only_first")
    for call in ({"padding": "wide"}, {"truncation": "wide"}, {"return_tensors": "tf"}):
        with pytest.raises(UserError, match="expected"):
            ours("a", **call)
    with pytest.raises(UserError, match="pad_to_multiple_of"):
        ours("a", padding=True, truncation=True, max_length=9, pad_to_multiple_of=8)
    with pytest.raises(UserError, match="2 texts"):
        ours(["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5,), "text: expected a str or a list of str, got int"),
        ((b"bytes",), "text: expected a str or a list of str, got bytes"),
        (({"a": 1},), "text: expected a str or a list of str, got dict"),
        ((["a", None],), "text 1 cannot be tokenized: expected str, got NoneType"),
        ((["a", b"b"],), "text 1 cannot be tokenized: expected str, got bytes"),
        ((["a", ["b", 5]],), "text 1 cannot be tokenized: expected str, got int"),
        (("a", 5), "text_pair: expected a str, as text is, got int"),
        (("a", ["b"]), "text_pair: expected a str, as text is, got list"),
        ((["a"], "b"), "got 1 texts and one str as text_pair: expected a list of as many"),
        ((["a"], 5), "got 1 texts and one int as text_pair"),
        ((["a", "b"], ["c"]), "got 2 texts and 1 text_pair"),
    ],
    ids=str,
)
def test_wrong_texts(ours, arguments, said) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        ours(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"padding": "wide"}, "padding='wide': expected one of longest, max_length, do_not_pad, or True or False"),
        ({"padding": None}, "padding=None: expected one of"),
        ({"padding": 1}, "padding=1: expected one of"),
        ({"truncation": "shortest_first"}, "truncation='shortest_first': expected one of longest_first, only_first"),
        ({"truncation": 5}, "truncation=5: expected one of"),
        ({"max_length": "8"}, "max_length='8': expected an integer, 0 or more"),
        ({"max_length": -1}, "max_length=-1: expected an integer, 0 or more"),
        ({"max_length": 8.0}, "max_length=8.0: expected an integer"),
        ({"max_length": True}, "max_length=True: expected an integer"),
        ({"max_length": 1}, "max_length=1 has no room for 2 special tokens"),
        ({"max_length": 8, "stride": -1}, "stride=-1: expected an integer, 0 or more"),
        ({"max_length": 8, "stride": 7}, "stride=7: expected 0 to 5, less than the tokens of a window"),
        ({"padding": True, "pad_to_multiple_of": 0}, "pad_to_multiple_of=0: expected an integer, 1 or more"),
        ({"padding": True, "padding_side": "up"}, "padding_side='up': expected one of right, left"),
        ({"return_tensors": "tf"}, "return_tensors='tf': expected 'pt' or 'np'"),
        ({"is_split_into_words": True}, "is_split_into_words=True: expected a list of words, got str"),
    ],
    ids=str,
)
def test_wrong_options(ours, options, said) -> None:
    with pytest.raises(UserError) as caught:
        ours("human rights for all", **options)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_only_second_needs_a_second(ours) -> None:
    with pytest.raises(TokenizerError, match=r"text 1 .*Second sequence not provided"):
        ours(["a", "human rights for all"], truncation="only_second", max_length=4)
