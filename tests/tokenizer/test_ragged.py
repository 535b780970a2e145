"""Batches to flat arrays: against the call, which never cuts by characters."""

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from tests.tokenizer.cases import LONG, MANY, TEXTS
from xlmr_ray.tokenizer.safe_prefix import LongText
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer


def rows_of(ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.input_ids, ragged.row_splits[1:-1])]


def check_ragged(ours, texts, pairs, *, max_length, truncation="longest_first", offsets=False) -> None:
    """Against `__call__`, which never cuts by characters."""
    ragged = ours.encode_ragged(texts, pairs, max_length=max_length, truncation=truncation, offsets=offsets)
    expected = ours(texts, pairs, truncation=truncation, max_length=max_length, return_offsets_mapping=True)
    assert rows_of(ragged) == expected.input_ids
    whole = ours(texts, pairs)
    lost = [len(kept) < len(full) for kept, full in zip(expected.input_ids, whole.input_ids, strict=True)]
    assert ragged.truncated.tolist() == lost
    assert ragged.owner.tolist() == list(range(len(texts)))
    assert (ragged.input_ids.dtype, ragged.row_splits.dtype, ragged.owner.dtype) == (np.int32, np.int64, np.int32)
    if offsets:
        assert [tuple(span) for span in ragged.offsets.tolist()] == [s for row in expected.offset_mapping for s in row]
        sides = [-1 if side is None else side for row in range(len(texts)) for side in expected.sequence_ids(row)]
        assert ragged.sequence_ids.tolist() == sides


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("offsets", [False, True])
def test_ragged(folder, side, offsets) -> None:
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder, truncation_side=side)
    for length in (2, 3, 8, 600):
        check_ragged(tokenizer, TEXTS, None, max_length=length, offsets=offsets)
    pairs = TEXTS[::-1]
    for length in (4, 5, 9, 10, 600):
        check_ragged(tokenizer, TEXTS, pairs, max_length=length, offsets=offsets)
    check_ragged(tokenizer, TEXTS, ["a"] * len(TEXTS), max_length=9, truncation="only_first", offsets=offsets)
    check_ragged(tokenizer, ["a"] * len(TEXTS), TEXTS, max_length=9, truncation="only_second", offsets=offsets)
    check_ragged(tokenizer, TEXTS, pairs, max_length=4, truncation="do_not_truncate", offsets=offsets)


@pytest.mark.parametrize("pairs", [None, TEXTS[::-1]])
def test_ragged_windows(ours, theirs, pairs) -> None:
    ragged = ours.encode_ragged(TEXTS, pairs, max_length=15, stride=3, overflow=True, offsets=True)
    expected = theirs(
        TEXTS,
        pairs,
        truncation=True,
        max_length=15,
        stride=3,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert rows_of(ragged) == expected.input_ids
    assert ragged.owner.tolist() == expected.overflow_to_sample_mapping
    assert [tuple(span) for span in ragged.offsets.tolist()] == [s for row in expected.offset_mapping for s in row]
    assert not ragged.truncated.any()
    without = ours.encode_ragged(TEXTS, pairs, max_length=15, stride=3, overflow=True)
    assert (without.input_ids == ragged.input_ids).all()
    assert without.offsets is None


def test_ragged_takes_arrow(ours) -> None:
    expected = ours.encode_ragged(TEXTS, max_length=20)
    for column in (
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.chunked_array([TEXTS[:3], TEXTS[3:]]),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(["dropped", *TEXTS])[1:],
    ):
        assert (ours.encode_ragged(column, max_length=20).input_ids == expected.input_ids).all()
    empty = ours.encode_ragged(pa.array([], pa.string()), max_length=20)
    assert (len(empty), empty.row_splits.tolist(), empty.truncated.tolist()) == (0, [0], [])
    with pytest.raises(TokenizerError, match=r"text 1 .*null"):
        ours.encode_ragged(pa.array(["a", None]), max_length=20)
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.int32([0, 1, 3])), pa.py_buffer(b"a\xff\xfe")]
    )
    with pytest.raises(TokenizerError, match=r"text 1 .*UTF-8"):
        ours.encode_ragged(broken, max_length=20)


@pytest.fixture(scope="session")
def uncut(folder: Path) -> XLMRobertaTokenizer:
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    tokenizer._long_text.usable = False
    return tokenizer


@MANY
@given(data=st.data())
def test_cutting_by_characters_never_changes_the_ids(ours, uncut, data) -> None:
    texts = data.draw(st.lists(LONG, min_size=1, max_size=3))
    check_ragged(ours, texts, None, max_length=data.draw(st.integers(4, 40)), offsets=data.draw(st.booleans()))
    # Pairs against the other path here: the library makes every pair of windows of two texts before it drops them.
    pairs = data.draw(st.lists(LONG, min_size=len(texts), max_size=len(texts)))
    length = data.draw(st.integers(5, 41))
    expected = uncut.encode_ragged(texts, pairs, max_length=length, offsets=True)
    actual = ours.encode_ragged(texts, pairs, max_length=length, offsets=True)
    for name in ("input_ids", "row_splits", "truncated", "offsets", "sequence_ids"):
        assert (getattr(actual, name) == getattr(expected, name)).all(), name


@MANY
@given(text=LONG, chars=st.integers(1, 200), tokens=st.integers(1, 30))
def test_a_cut_text_has_the_first_ids_of_the_whole(ours, text, chars, tokens) -> None:
    """The two cuts themselves, at lengths that `encode_ragged` would not choose."""
    long_text = ours._long_text
    whole = ours.encode(text, add_special_tokens=False)
    prefix = long_text.at_space(text, chars)
    if prefix is not None:
        ids = ours.encode(prefix, add_special_tokens=False)
        assert ids == whole[: len(ids)]
        assert len(prefix) >= chars
    prefix = long_text.without_space(text, chars, tokens)
    if prefix is not None:
        ids = ours.encode(prefix, add_special_tokens=False)
        assert len(ids) > tokens
        assert ids[:tokens] == whole[:tokens]


def test_long_texts_are_cut(ours, monkeypatch) -> None:
    """Were nothing cut, the tests above would prove nothing."""
    seen: list[int] = []
    original = XLMRobertaTokenizer.encode_ragged.__globals__["encode_ragged"].__globals__["encode_batch"]

    def spy(backend, items, **options):
        seen.extend(map(len, items))
        return original(backend, items, **options)

    monkeypatch.setattr("xlmr_ray.tokenizer.ragged.encode_batch", spy)
    words = "human rights are for all " * 40_000
    blob = "humanrightsareforall" * 5_000
    chinese = "人人生而自由在尊严和权利上一律平等" * 5_000
    ragged = ours.encode_ragged([words, blob, chinese], max_length=64)
    assert ragged.truncated.all()
    assert max(seen) < 10_000
    assert rows_of(ragged) == ours([words, blob, chinese], truncation=True, max_length=64).input_ids


def test_a_megabyte_without_a_border_is_whole_and_right(ours) -> None:
    for text in ("e\u0301" * 30_000, "👩" * 30_000, "a" * 100_000):
        check_ragged(ours, [text], None, max_length=16)


def test_characters_before_a_cut_never_end_in_a_space(ours) -> None:
    """What `LongText` takes for granted of the normalizer, over every character a cut may follow or precede."""
    long_text = LongText(ours.backend_tokenizer)
    normalizer = ours.backend_tokenizer.normalizer
    assert long_text.usable
    before = [chr(c) for c in range(0x10000) if not 0xD800 <= c < 0xE000 and long_text.at_space(f"aa{chr(c)} aa", 3)]
    assert len(before) > 40_000
    joined = [normalizer.normalize_str(char) for char in before]
    assert [char for char, form in zip(before, joined, strict=True) if form and form[-1].isspace()] == []
    after = [char for char in before if char.isalnum()]
    # Decomposed, each of them begins with a character of its own, not with a mark of the one before.
    assert [c for c in after if unicodedata.combining(unicodedata.normalize("NFKD", c)[0])] == []
    wrong = [c for c in after if normalizer.normalize_str(f"a {c}")[:2] != "a "]
    assert wrong == []
    apart = normalizer.normalize_str("a") + normalizer.normalize_str(" a")
    assert normalizer.normalize_str("a a") == apart


def test_tokenizers_of_another_make_are_not_cut(small: Path) -> None:
    def usable(**parts) -> bool:
        backend = Tokenizer.from_file(str(small / "tokenizer.json"))
        for name, part in parts.items():
            setattr(backend, name, part)
        return LongText(backend).usable

    assert usable()
    assert usable(normalizer=normalizers.NFKC())
    assert usable(normalizer=normalizers.Lowercase())  # character by character
    assert not usable(normalizer=normalizers.BertNormalizer())
    assert not usable(pre_tokenizer=pre_tokenizers.Metaspace(split=False))
    assert not usable(pre_tokenizer=pre_tokenizers.ByteLevel())
    backend = Tokenizer.from_file(str(small / "tokenizer.json"))
    backend.add_tokens([AddedToken("New York")])
    assert not LongText(backend).usable
