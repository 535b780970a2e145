"""Any text is encoded as transformers encodes it, or refused in one line."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer.cases import ALL, MANY, same
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.tokenizer import TokenizerError

ODD = {
    "empty": "",
    "spaces": "   ",
    "only zero width": "\u200b\u200c\u200d\ufeff",
    "NUL": "a\x00b\x00",
    "control characters": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "byte order mark": "\ufeffHello",
    "line ends": "a\rb\r\nc\nd\x0be\x0cf\x1cg\x85h\u2028i\u2029j",
    "right to left": "שלום \u202eabc\u202c يولد جميع الناس \u2067x\u2069",
    "joined emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 👍🏽 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "marks": "e" + "\u0301" * 200 + " Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "composed": unicodedata.normalize("NFC", "Ångström déjà 각"),
    "decomposed": unicodedata.normalize("NFD", "Ångström déjà 각"),
    "compatibility": "ﷺ Ⅷ ½ ① ａｂｃ ﬁ ｶﾞ ㍿ ℡",
    "special tokens": "a </s> b<s>c <pad> <unk> <mask>d",
    "half special tokens": "<s <mask </s><s>> <MASK> < mask >",
    "underscores": "▁▁ a▁b ▁",
    "beyond the BMP": "𐍈𐌰𐌹 𝕏 𠜎𠜱 \U0010ffff",
    "private and unassigned": "\ue000\ufdd0\uffff\u0378",
    "a script unknown to it": "ᠮᠣᠩᠭᠣᠯ ꓡꓲꓢꓴ 𒀀𒁀",
    "a long word": "a" * 20_000,
    "a long word of marks": "क्ष" * 3_000,
    "no spaces": "人人生而自由在尊严和权利上一律平等" * 500,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_texts(ours, theirs, text) -> None:
    same(ours, theirs, text, verbose=False, **ALL)
    same(ours, theirs, ["x", text], ["y", "z"], truncation=True, max_length=12, padding=True, **ALL)
    ids = ours.encode(text)[:100]
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    spans = ours(text, return_offsets_mapping=True, verbose=False).offset_mapping
    assert all(0 <= start <= end <= len(text) for start, end in spans)


@MANY
@given(text=st.text(st.characters(), max_size=30), pair=st.none() | st.text(st.characters(), max_size=30))
def test_any_characters(ours, theirs, text, pair) -> None:
    """Every code point, surrogates among them."""
    bad = [place for one in (text, pair or "") for place, char in enumerate(one) if "\ud800" <= char <= "\udfff"]
    if not bad:
        same(ours, theirs, text, pair, **ALL)
        return
    with pytest.raises(TokenizerError, match=rf"^text 0 cannot be tokenized: .*at character {bad[0]};[^\n]*$"):
        ours(text, pair)
    with pytest.raises(TokenizerError):
        ours.encode_ragged([text], None if pair is None else [pair], max_length=4096)


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF])
def test_lone_surrogates(ours, code) -> None:
    surrogate = chr(code)
    line = rf"text 1 .*lone surrogate U\+{code:04X} at character 4; put U\+FFFD"
    bad = f"fine{surrogate}"
    with pytest.raises(TokenizerError, match=line):
        ours(["fine", bad])
    with pytest.raises(TokenizerError, match=line):
        ours(["a", "b"], ["c", bad])
    with pytest.raises(TokenizerError, match=line):
        ours([("a", "b"), ("c", bad)])
    with pytest.raises(TokenizerError, match=line):
        ours([["a"], ["b", bad]], is_split_into_words=True)
    with pytest.raises(TokenizerError, match=line):
        ours([["a"], ["b"]], [["a"], ["b", bad]], is_split_into_words=True)
    with pytest.raises(TokenizerError, match=line.replace("text 1", "text 0")):
        ours.tokenize(bad)
    with pytest.raises(UserError, match="surrogate"):
        ours.add_tokens(bad)
    with pytest.raises(UserError, match="surrogate"):
        ours.convert_tokens_to_ids(bad)
