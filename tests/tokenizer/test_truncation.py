"""Every truncation strategy, stride and padding, over any texts and pairs, against transformers' own tokenizer."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.cases import ALL, MANY, MIXED, same
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.call import pairs as tokenizer_pairs
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

SOME = settings(MANY, max_examples=50)
STRATEGIES = [True, False, None, "longest_first", "only_first", "only_second", "do_not_truncate"]
PADDINGS = [True, False, "longest", "max_length", "do_not_pad"]
WORDS = st.lists(
    st.text(min_size=1, max_size=8) | st.sampled_from(["human", "rights", "自由", "и", "<mask>"]), max_size=9
)


@st.composite
def batches(draw: st.DrawFn, texts: st.SearchStrategy) -> tuple[list, list | None]:
    first = draw(st.lists(texts, min_size=1, max_size=3))
    return first, draw(st.none() | st.lists(texts, min_size=len(first), max_size=len(first)))


@st.composite
def options(draw: st.DrawFn) -> dict:
    chosen = {
        "truncation": draw(st.sampled_from(STRATEGIES)),
        "padding": draw(st.sampled_from(PADDINGS)),
        "max_length": draw(st.none() | st.integers(4, 24)),
        "stride": draw(st.sampled_from([0, 0, 1, 2, 5])),
        "pad_to_multiple_of": draw(st.sampled_from([None, None, 4, 7])),
        "padding_side": draw(st.sampled_from([None, "left", "right"])),
        "add_special_tokens": draw(st.booleans()),
        "return_overflowing_tokens": draw(st.booleans()),
        "return_attention_mask": draw(st.sampled_from([None, True, False])),
        "verbose": False,
    }
    return chosen | (ALL if draw(st.booleans()) else {})


def same_or_refused(ours, theirs, text, pair, chosen: dict) -> None:
    """Both give the same, or ours says in a line of its own why not: what the library refuses, panics at or ignores."""
    try:
        ours(text, pair, **chosen)
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        if "has no room for" in said or "stride" in said:
            return  # the library cuts nothing, or panics
        with pytest.raises(Exception, match=r"multiple of|too short|Second sequence"):
            theirs(text, pair, **chosen)
        return
    if chosen.get("stride") and not chosen["return_overflowing_tokens"]:
        # Without windows it has no meaning, but the library may panic.
        without = chosen | {"stride": 0}
        assert ours(text, pair, **chosen) == ours(text, pair, **without)
        chosen = without
    same(ours, theirs, text, pair, **chosen)


@pytest.fixture(params=["right", "left"], scope="module")
def sides(request, ours, theirs):
    """Both tokenizers, cutting on the same side; put back after."""
    before = ours.truncation_side, theirs.truncation_side
    ours.truncation_side = theirs.truncation_side = request.param
    yield ours, theirs
    ours.truncation_side, theirs.truncation_side = before


@SOME
@given(batch=batches(st.one_of(MIXED, MIXED, st.integers(1, 12).map("human rights ".__mul__))), chosen=options())
def test_texts_and_pairs(sides, batch, chosen) -> None:
    same_or_refused(*sides, *batch, chosen)
    same_or_refused(*sides, batch[0][0], batch[1] and batch[1][0], chosen)


@SOME
@given(batch=batches(WORDS), chosen=options())
def test_lists_of_words(sides, batch, chosen) -> None:
    same_or_refused(*sides, *batch, chosen | {"is_split_into_words": True})
    same_or_refused(*sides, batch[0][0], batch[1] and batch[1][0], chosen | {"is_split_into_words": True})


@pytest.fixture
def alone(monkeypatch) -> None:
    """No pair is given to the library to cut."""
    monkeypatch.setattr(tokenizer_pairs, "_MOST", -1)


@SOME
@given(batch=batches(st.one_of(MIXED, st.integers(1, 12).map("human rights ".__mul__))), chosen=options())
def test_pairs_cut_alone(sides, alone, batch, chosen) -> None:
    chosen |= {"truncation": "longest_first", "return_overflowing_tokens": False, "stride": 0}
    chosen["max_length"] = chosen["max_length"] or 9
    same_or_refused(*sides, *batch, chosen)


@SOME
@given(batch=batches(WORDS), chosen=options())
def test_words_cut_alone(sides, alone, batch, chosen) -> None:
    chosen |= {"truncation": True, "return_overflowing_tokens": False, "stride": 0, "is_split_into_words": True}
    chosen["max_length"] = chosen["max_length"] or 9
    same_or_refused(*sides, *batch, chosen)


def test_two_long_texts(ours) -> None:
    """The library would make millions of windows of these."""
    text = "human rights for all " * 2_500
    cut = ours(["a", text, "b"], ["c", text, text], truncation=True, max_length=12, padding="max_length")
    flat = ours.encode_ragged(["a", text, "b"], ["c", text, text], max_length=12)
    rows = zip(cut.input_ids, cut.attention_mask, strict=True)
    assert [[token for token, real in zip(*row, strict=True) if real] for row in rows] == [
        flat.input_ids[start:end].tolist() for start, end in zip(flat.row_splits[:-1], flat.row_splits[1:], strict=True)
    ]
    assert cut.sequence_ids(1) == [None, 0, 0, 0, 0, None, None, 1, 1, 1, 1, None]
    for call in (
        lambda: ours(["a", text], ["b", text], truncation=True, max_length=12, return_overflowing_tokens=True),
        lambda: ours.encode_ragged(["a", text], ["b", text], max_length=12, overflow=True),
    ):
        with pytest.raises(TokenizerError, match=r"text 1 .*only_second"):
            call()
    with pytest.raises(TokenizerError, match=r"text 1 .*surrogate"):
        ours([text, "a\ud800"], [text, "b"], truncation=True, max_length=12)
    with pytest.raises(TokenizerError, match=r"text 1 .*surrogate"):
        ours(["a", "\ud800" + text], ["b", text], truncation=True, max_length=12)


def test_a_length_alone_cuts_and_no_length_means_the_models(ours, theirs, small) -> None:
    text = "human rights " * 300
    same(ours, theirs, text, truncation=True)
    same(ours, theirs, [text, "a"], padding="max_length", truncation="only_first")
    same(ours, theirs, [text, "a"], padding=True, max_length=9, verbose=False)
    unlimited = XLMRobertaTokenizer(tokenizer_file=small / "tokenizer.json")
    assert len(unlimited(text, truncation=True, padding="max_length").input_ids) > 600
