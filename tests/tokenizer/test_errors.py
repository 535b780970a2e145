"""One clear line for what cannot be done."""

import pickle

import pytest

from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer import TokenizerError


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
    with pytest.raises(TokenizerError, match=r"text 0 .*second text alone"):
        ours.encode_ragged(["a b"], ["c " * 20], max_length=8, truncation="only_first")
    for call in ({"padding": "wide"}, {"truncation": "wide"}, {"return_tensors": "tf"}):
        with pytest.raises(UserError, match="expected"):
            ours("a", **call)
    with pytest.raises(UserError, match="pad_to_multiple_of"):
        ours("a", padding=True, truncation=True, max_length=9, pad_to_multiple_of=8)
    with pytest.raises(UserError, match="2 texts"):
        ours(["a", "b"], ["c"])
