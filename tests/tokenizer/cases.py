"""Texts and comparisons that the tokenizer's tests share."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import xlmr_ray

ASSETS = Path(xlmr_ray.__file__).parent / "assets"
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
TEXTS = [
    "Hello World!",
    "Bonjour, je suis un modèle <mask>.",
    "",
    "   ",
    "\u200b\u200d",
    "Все люди рождаются свободными и равными",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり",
    "يولد جميع الناس أحراراً متساوين",
    "सभी मनुष्यों को गौरव",
    "มนุษย์ทั้งหลายเกิดมามีอิสระ",
    "👩‍👩‍👧 🇫🇷 é e\u0301 ﷺ Ⅷ ½ ① ａｂｃ",
    "tabs\tand\r\nlines\n\n\nand\u2028more",
    "a </s> b <s> c<pad>d <unk> e <mask> f",
    "null \x00 and bell \x07 and \ufeff bom \x85",
    "x" * 300,
    "▁▁ literal ▁ underscores",
]

# Runs of one kind, so that spaces, marks, joiners and special tokens meet in every way.
PIECES = st.sampled_from(
    [
        *(" ", "  ", "\n", "\t", "\r\n", "\u3000", "\u00a0", "\u200b", "\u200d", "\u0301", "\u0e33", "\u0d4e", "▁"),
        *("\u0600", "\u0903", "ก", "ำ", "क", "्", "ष", "한", "\u1112\u1161\u11ab", "\u11ab", "ﷺ", "ﬁ", "ｶﾞ", "\uff9e"),
        *("<s>", "</s>", "<mask>", "<ma", "sk>", "<unk>", "the", "Hello", "world", "и", "人", "自由", "。", "،", "."),
        *(
            "ㄱ",
            "ㅏ",
            "ﾡ",
            "ￂ",
            "각",
            "1",
            "2024",
            "a",
            "é",
            "e\u0301",
            "👩‍👧",
            "🇫🇷",
            "𐍈",
            "\x00",
            "ä",
            "…",
            "\u0085",
            "¨",
            "ͺ",
        ),
    ]
)
MIXED = st.one_of(
    st.lists(PIECES, max_size=40).map("".join),
    st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=20).map("".join),
    st.text(max_size=40),
)
LETTERS = st.text(st.characters(categories=["Lo", "Ll", "Lu", "Nd"], max_codepoint=0xFFFF), min_size=1, max_size=9)
# Long enough, many times over, for a text to be cut at the lengths the tests ask for.
LONG = st.one_of(
    st.tuples(st.lists(st.one_of(PIECES, LETTERS), min_size=4, max_size=60), st.integers(1, 12)).map(
        lambda part: "".join(part[0]) * part[1]
    ),
    st.tuples(st.lists(LETTERS, min_size=4, max_size=80), st.integers(1, 12)).map(
        lambda part: " ".join(part[0]) * part[1]
    ),
    st.tuples(st.lists(st.one_of(LETTERS, st.sampled_from("自由平等人的是。、")), min_size=4), st.integers(1, 40)).map(
        lambda part: "".join(part[0]) * part[1]
    ),
)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


ALL = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


def corpus() -> pa.Table:
    """The Universal Declaration of Human Rights, an article a row: columns lang and text."""
    return pa.concat_tables([pq.read_table(part) for part in sorted((ASSETS / "udhr").glob("*.parquet"))])


def articles() -> list[str]:
    return corpus()["text"].to_pylist()


def same(ours, theirs, text, pair=None, **options) -> None:
    expected = theirs(text, pair, **options)
    actual = ours(text, pair, **options)
    assert set(actual.keys()) == set(expected.keys())
    for name, value in expected.items():
        got = actual[name]
        if options.get("return_tensors"):
            assert got.shape == value.shape
            assert got.dtype == value.dtype
            got, value = got.tolist(), value.tolist()
        assert got == value, name
    for row in range(len(expected.encodings)):
        assert actual.word_ids(row) == expected.word_ids(row)
        assert actual.sequence_ids(row) == expected.sequence_ids(row)
        assert actual.tokens(row) == expected.tokens(row)
