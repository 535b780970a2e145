"""Ids by known words are the library's, for any text, whatever was tokenized before, and however few words are kept."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import Digits, Metaspace, Sequence, WhitespaceSplit

from tests.tokenizer.cases import TEXTS
from xlmr_ray.tokenizer.known_words import LONGEST, KnownWords
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

# Whitespace of every kind, to Python, to Unicode and to neither; the mark; added tokens; what the normalizer changes.
ODD = [
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u180e",
    "\u200b",
    "\u2028",
    "\u3000",
    "\ufeff",
    "▁",
    "▁▁",
    "<s>",
    "<mask>",
    "</s>",
]
ODD += ["<", "ﬁ", "①", "ｱﾞ", "e\u0301", "\u0301", "\u0e33", "\u200d", "👩‍👩‍👧", "\u0000", "İ", "ß", "㍿", "½", "…", "--"]
word = st.one_of(st.text(max_size=6), st.sampled_from(ODD), st.sampled_from(["Hallo", "monde", "ไทย", "नमस्ते", "مرحبا"]))
text = st.lists(st.tuples(word, st.sampled_from(["", " ", "  ", "\n", "\t", "\u00a0", "\u3000"])), max_size=12).map(
    lambda parts: "".join(part for pair in parts for part in pair)
)


@pytest.fixture(scope="module")
def mine(mini):
    return XLMRobertaTokenizer.from_pretrained(mini)


def library(tokenizer, texts):
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def check(tokenizer, known, texts):
    """How many went by words."""
    found = [known.ids(one) for one in texts]
    for one, expected in zip(found, library(tokenizer, texts), strict=True):
        assert one is None or one.ids.tolist() == expected
    return sum(one is not None for one in found)


@given(st.lists(text, max_size=8), st.integers(1, 6))
def test_any_text(mine, texts, most):
    known = KnownWords(mine.backend_tokenizer, most)
    for _ in range(2):
        check(mine, known, texts)
    assert len(known) <= most
    assert len(known.older) <= most


@given(text)
def test_a_tokenizer_that_has_seen_others(mine, one):
    try:
        (expected,) = library(mine, [one])
    except Exception:
        return
    got = mine.encode_ragged([one], max_length=10_000)
    assert got.input_ids[1:-1].tolist() == expected


def test_the_corpus_of_all_languages(mine, udhr):
    texts = [one for path in sorted(udhr.glob("*.parquet")) for one in pq.read_table(path)["text"].to_pylist()]
    known = KnownWords(mine.backend_tokenizer)
    assert check(mine, known, texts) > 0.8 * len(texts)  # the others are of scripts without spaces
    assert check(mine, known, texts[::7]) > 0.8 * len(texts[::7])
    assert check(mine, known, TEXTS) > 0


def test_words_that_do_not_come_again_are_not_kept(mine):
    known = KnownWords(mine.backend_tokenizer)
    long = "x" * (LONGEST + 1)
    check(mine, known, [f"a b c {long} d e f"])
    assert sorted(known) == ["a", "b", "c", "d", "e", "f"]


def test_older_words_that_come_again_stay(mine):
    known = KnownWords(mine.backend_tokenizer, 2)
    check(mine, known, ["a b", "c"])
    assert (set(known), set(known.older)) == ({"c"}, {"a", "b"})
    asked = []
    known.model = type("Model", (), {"tokenize": asked.append})
    assert known.ids("a").ids.tolist() == library(mine, ["a"])[0]
    assert asked == []
    assert set(known) == {"c", "a"}


def test_several_threads_at_once(mine, udhr):
    texts = pq.read_table(udhr / "part-0.parquet")["text"].to_pylist()
    expected = library(mine, texts)
    known = KnownWords(mine.backend_tokenizer, 50)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: [known.ids(one) for one in texts], range(4)):
            for one, ids in zip(found, expected, strict=True):
                assert one is None or one.ids.tolist() == ids


def test_only_a_tokenizer_that_splits_at_whitespace_first(mine):
    backend = mine.backend_tokenizer
    assert KnownWords(backend).usable
    other = type(backend).from_str(backend.to_str())
    for kinds in (
        [Metaspace()],
        [WhitespaceSplit(), Metaspace(prepend_scheme="never")],
        [WhitespaceSplit(), Metaspace(prepend_scheme="first")],
        [WhitespaceSplit(), Metaspace(replacement="_")],
        [WhitespaceSplit(), Metaspace(split=False)],
        [Digits(), WhitespaceSplit(), Metaspace()],
    ):
        other.pre_tokenizer = Sequence(kinds)
        assert not KnownWords(other).usable


def test_ids_are_of_the_type_that_batches_have(mine):
    got = mine.encode_ragged(["one two", "", "one"], max_length=8)
    assert (got.input_ids.dtype, got.row_splits.tolist()[-1]) == (np.int32, len(got.input_ids))


@pytest.mark.slow
def test_every_character_of_unicode(mine):
    """A million texts: in words, alone, and twice at the end of one."""
    points = [chr(one) for one in range(0x110000) if not 0xD800 <= one <= 0xDFFF]
    known, by_words = KnownWords(mine.backend_tokenizer), 0
    for at in range(0, len(points), 20_000):
        by_words += check(mine, known, [f"la{c}mot {c} x{c}{c} ok" for c in points[at : at + 20_000]])
    assert by_words > len(points) - 10  # but for the mark and what only Python takes for whitespace
