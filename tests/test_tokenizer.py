"""The tokenizer against transformers' own, loaded from the same tokenizer.json, which it keeps as it is."""

import json
import os
import pickle
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast
from transformers import XLMRobertaTokenizer as Reference

import xlmr_ray
from xlmr_ray.errors import UserError
from xlmr_ray.long_text import LongText
from xlmr_ray.sentencepiece import fairseq_vocabulary, read_sentencepiece, write_sentencepiece
from xlmr_ray.tokenizer import TokenizerError, XLMRobertaTokenizer

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


def articles() -> list[str]:
    table = pa.concat_tables([pq.read_table(part) for part in sorted((ASSETS / "udhr").glob("*.parquet"))])
    return table["text"].to_pylist()


def write_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"model_max_length": 128}))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint's tokenizer; where there is none, one of XLM-R's layout trained on the sample corpus."""
    if (ASSETS / "mini" / "tokenizer.json").is_file():
        return ASSETS / "mini"
    folder = tmp_path_factory.mktemp("trained")
    trainer = UnigramTrainer(
        vocab_size=3000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    backend = Tokenizer(Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(articles()[::7], trainer)
    learned = json.loads(backend.to_str())["model"]["vocab"]
    vocabulary = [*((piece, score) for piece, score in learned), ("<mask>", 0.0)]
    backend = Tokenizer(Unigram(vocabulary, unk_id=3))
    backend.normalizer = normalizers.Replace(re_spaces(), " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in dict.fromkeys(SPECIAL.values())])
    backend.save(str(folder / "tokenizer.json"))
    write_config(folder)
    return folder


def re_spaces():
    from tokenizers import Regex

    return Regex(" {2,}")


@pytest.fixture(scope="session")
def e5() -> Path:
    folder = os.environ.get("XLMR_RAY_E5")
    if not folder:
        pytest.skip("XLMR_RAY_E5 names no folder with XLM-R's own 250k vocabulary")
    return Path(folder)


@pytest.fixture(scope="session", params=["small", *(["e5"] if os.environ.get("XLMR_RAY_E5") else [])])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def ours(folder: Path) -> XLMRobertaTokenizer:
    return XLMRobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def theirs(folder: Path) -> PreTrainedTokenizerFast:
    length = json.loads((folder / "tokenizer_config.json").read_text()).get("model_max_length", 512)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_max_length=length,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


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


# Parity of calls


def test_published_ids(e5: Path, tmp_path: Path) -> None:
    tokenizer = XLMRobertaTokenizer.from_pretrained(e5)
    assert tokenizer("Hello World!").input_ids == [0, 35378, 6661, 38, 2]
    text = (
        'This is a very long text with a lot of weird characters, such as: . , ~ ? ( ) " [ ] ! : - . Also we will add '
        "words that should not exsist and be tokenized to <unk>, such as saoneuhaoesuth"
    )
    # fmt: off
    published = [
        0,3293,83,10,4552,4989,7986,678,10,5915,111,179459,124850,4,6044,237,12,6,5,6,4,6780,705,15,1388,44,378,10114,
        711,152,20,6,5,22376,642,1221,15190,34153,450,5608,959,1119,57702,136,186,47,1098,29367,47,3,6,4,6044,237,6284,
        50901,528,31,90,34,927,2,
    ]
    # fmt: on
    (vocabulary,) = tokenizer.save_vocabulary(tmp_path)
    assert XLMRobertaTokenizer(vocabulary).encode(text) == published
    # This tokenizer.json keeps the space before a special token as a token; XLM-R's own pre-tokenizer, which the
    # reference puts in its place from 5.6 on, does not. The file is right about its own model.
    place = published.index(3)
    assert tokenizer.encode(text) == [*published[:place], 6, *published[place:]]


ALL = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


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


def test_every_language(ours, theirs) -> None:
    texts = articles()[::11]
    expected = theirs(texts, return_offsets_mapping=True)
    actual = ours(texts, return_offsets_mapping=True)
    assert actual.data == expected.data
    assert ours.batch_decode(actual.input_ids) == theirs.batch_decode(expected.input_ids)


def test_conversions(ours, theirs) -> None:
    text = "Hello, world: it's <mask> time ."
    ids = ours.encode(text)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.tokenize(text, add_special_tokens=True) == theirs.tokenize(text, add_special_tokens=True)
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(ids, skip_special_tokens=True) == theirs.convert_ids_to_tokens(ids, True)
    assert ours.convert_ids_to_tokens(5) == theirs.convert_ids_to_tokens(5)
    tokens = [*theirs.convert_ids_to_tokens(ids), "no such piece"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == theirs.get_special_tokens_mask(
        ids, already_has_special_tokens=True
    )
    for forms in (np.array(ids), torch.tensor(ids), [ids, ids], torch.tensor([ids, ids]), ids[1]):
        assert ours.decode(forms) == theirs.decode(forms)
    assert ours.batch_decode([torch.tensor(ids), torch.tensor(ids[:3])]) == [ours.decode(ids), ours.decode(ids[:3])]
    assert len(ours) == len(theirs)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.get_vocab() == theirs.get_vocab()
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert ours.special_tokens_map == theirs.special_tokens_map
    for name in SPECIAL:
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)


def test_formatting_by_hand_is_what_a_call_gives(ours) -> None:
    first, second = (ours.encode(text, add_special_tokens=False) for text in ("one two", "three"))
    for text_pair, ids in ((None, None), ("three", second)):
        encoded = ours("one two", text_pair, return_special_tokens_mask=True)
        assert ours.build_inputs_with_special_tokens(first, ids) == encoded.input_ids
        assert ours.get_special_tokens_mask(first, ids) == encoded.special_tokens_mask
        assert ours.create_token_type_ids_from_sequences(first, ids) == [0] * len(encoded.input_ids)
    with pytest.raises(UserError, match="token_ids_1"):
        ours.get_special_tokens_mask(first, second, already_has_special_tokens=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": False},
        {"padding": "max_length", "max_length": 12, "padding_side": "left"},
        {"pad_to_multiple_of": 8, "return_tensors": "pt"},
        {"return_attention_mask": False},
    ],
)
def test_pad(ours, theirs, options) -> None:
    rows = [
        {"input_ids": [0, 5, 2], "special_tokens_mask": [1, 0, 1]},
        {"input_ids": [0, 2], "special_tokens_mask": [1, 1]},
    ]
    for inputs in (rows, {"input_ids": [[0, 5, 2], [0, 7, 8, 9, 2]]}, {"input_ids": [0, 5, 2]}):
        if options.get("padding") is False and isinstance(inputs, dict) and options.get("return_tensors"):
            continue
        copy = json.loads(json.dumps(inputs))
        expected, actual = theirs.pad(copy, **options), ours.pad(inputs, **options)
        assert {k: np.asarray(v, object).tolist() for k, v in actual.items()} == {
            k: np.asarray(v, object).tolist() for k, v in expected.items()
        }
    tensors = ours.pad([{"input_ids": torch.tensor([0, 5, 2])}, {"input_ids": torch.tensor([0, 2])}])
    assert tensors.input_ids.tolist() == [[0, 5, 2], [0, 2, 1]]


def test_batch_encoding(ours, theirs) -> None:
    text, pair = "Hello wide world", "again and again"
    actual = ours([text], [pair], return_tensors="pt")
    expected = theirs([text], [pair], return_tensors="pt")
    assert dict(**actual).keys() == {"input_ids", "attention_mask"}
    assert actual.to("cpu")["input_ids"] is not None
    assert (actual.n_sequences, actual.is_fast) == (2, True)
    for char in range(len(text)):
        assert actual.char_to_token(0, char) == expected.char_to_token(0, char)
        assert actual.char_to_token(char, sequence_index=1) == expected.char_to_token(char, sequence_index=1)
        assert actual.char_to_word(char) == expected.char_to_word(char)
    for token in range(actual.input_ids.shape[1]):
        assert actual.token_to_chars(token) == expected.token_to_chars(token)
        assert actual.token_to_word(0, token) == expected.token_to_word(0, token)
        assert actual.token_to_sequence(token) == expected.token_to_sequence(token)
    assert actual.word_to_tokens(1) == expected.word_to_tokens(1)
    assert actual.word_to_chars(0, 1, 1) == expected.word_to_chars(0, 1, 1)
    assert actual[0].ids == expected[0].ids
    actual["labels"] = torch.tensor([1])
    assert actual.labels.item() == 1
    with pytest.raises(AttributeError, match="nothing"):
        _ = actual.nothing
    with pytest.raises(UserError, match="padding=True"):
        ours(["a", "a b c d"], return_tensors="pt")
    assert pickle.loads(pickle.dumps(actual)).input_ids.tolist() == actual.input_ids.tolist()


# The batch path


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

    monkeypatch.setattr("xlmr_ray.ragged.encode_batch", spy)
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
    assert not usable(normalizer=normalizers.Lowercase())
    assert not usable(pre_tokenizer=pre_tokenizers.Metaspace(split=False))
    assert not usable(pre_tokenizer=pre_tokenizers.ByteLevel())
    backend = Tokenizer.from_file(str(small / "tokenizer.json"))
    backend.add_tokens([AddedToken("New York")])
    assert not LongText(backend).usable


# Errors


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


# Files


def test_saved_and_loaded_again(ours, small, tmp_path) -> None:
    files = ours.save_pretrained(tmp_path)
    assert {Path(name).name for name in files} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    again = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS).data == ours(TEXTS).data
    assert again.fingerprint == ours.fingerprint
    assert again.model_max_length == ours.model_max_length
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs(TEXTS).input_ids == ours(TEXTS).input_ids
    copy = pickle.loads(pickle.dumps(ours))
    assert (copy.fingerprint, copy(TEXTS).data) == (ours.fingerprint, ours(TEXTS).data)


def test_fingerprint_tells_tokenizers_apart(small, tmp_path) -> None:
    one = XLMRobertaTokenizer.from_pretrained(small)
    assert re.fullmatch(r"[0-9a-f]{16}", one.fingerprint)
    assert XLMRobertaTokenizer.from_pretrained(small).fingerprint == one.fingerprint
    assert XLMRobertaTokenizer.from_pretrained(small, truncation_side="left").fingerprint != one.fingerprint
    spec = json.loads((small / "tokenizer.json").read_text())
    spec["model"]["vocab"][10][1] -= 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert XLMRobertaTokenizer.from_pretrained(tmp_path).fingerprint != one.fingerprint


def test_settings_stored_in_the_file_do_not_act(small, tmp_path) -> None:
    spec = json.loads((small / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    special = {"mask_token": {"content": "<mask>", "lstrip": True}, "pad_token": {"content": "<pad>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer("a b c d e f g h").input_ids) > 5
    assert tokenizer.truncation_side == "left"
    assert (tokenizer.mask_token, tokenizer.pad_token) == ("<mask>", "<pad>")


def test_from_sentencepiece(folder, tmp_path) -> None:
    known = XLMRobertaTokenizer.from_pretrained(folder)
    (name,) = known.save_vocabulary(tmp_path)
    assert Path(name).name == "sentencepiece.bpe.model"
    ours = XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert ours.get_vocab() == known.get_vocab()
    assert (ours.bos_token_id, ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 2, 3)
    assert ours.mask_token_id == len(ours) - 1
    pieces, charsmap = read_sentencepiece(Path(name))
    theirs = Reference(fairseq_vocabulary(pieces), _spm_precompiled_charsmap=charsmap or None)
    texts = [*TEXTS, *articles()[::40]]
    same(ours, theirs, texts, return_offsets_mapping=True)
    assert XLMRobertaTokenizer(vocab_file=name)(texts).data == ours(texts).data
    assert XLMRobertaTokenizer(name)(texts).data == ours(texts).data
    (tmp_path / "copy").mkdir()
    (copied,) = ours.save_vocabulary(tmp_path / "copy", "x")
    assert Path(copied).name == "x-sentencepiece.bpe.model"
    assert Path(copied).read_bytes() == Path(name).read_bytes()


def test_sentencepiece_itself_reads_and_agrees(folder, tmp_path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece package is not installed")
    known = XLMRobertaTokenizer.from_pretrained(folder)
    (name,) = known.save_vocabulary(tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=name)
    assert processor.get_piece_size() == len(known) - 2
    tokenizer = XLMRobertaTokenizer(name)
    for text in articles()[::40]:
        # A vocabulary trained here has no character map that would make spaces of line breaks.
        text = " ".join(text.split())
        assert tokenizer.tokenize(text) == processor.encode(text, out_type=str)


def test_sentencepiece_files_both_ways(tmp_path) -> None:
    from transformers.convert_slow_tokenizer import import_protobuf

    vocabulary = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁a", -1.5),
        ("人", -2.25),
        ("<mask>", 0.0),
    ]
    path = tmp_path / "sentencepiece.bpe.model"
    write_sentencepiece(path, vocabulary, b"\x00\x01charsmap" * 40)
    message = import_protobuf().ModelProto()
    message.ParseFromString(path.read_bytes())
    assert [(piece.piece, piece.score) for piece in message.pieces][3:] == vocabulary[4:-1]
    assert message.trainer_spec.model_type == 1
    assert message.normalizer_spec.precompiled_charsmap == b"\x00\x01charsmap" * 40
    message.trainer_spec.vocab_size = 6
    message.trainer_spec.input_sentence_size = 2**40
    path.write_bytes(message.SerializeToString())
    pieces, charsmap = read_sentencepiece(path)
    assert fairseq_vocabulary(pieces) == vocabulary
    assert charsmap == b"\x00\x01charsmap" * 40
    message.trainer_spec.model_type = 2
    path.write_bytes(message.SerializeToString())
    with pytest.raises(UserError, match="model type 2"):
        read_sentencepiece(path)
    for junk in (b"", b"not a model at all", message.SerializeToString()[:-5]):
        path.write_bytes(junk)
        with pytest.raises(UserError, match="not a sentencepiece model"):
            read_sentencepiece(path)


@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_from_a_vocabulary(small, add_prefix_space) -> None:
    spec = json.loads((small / "tokenizer.json").read_text())
    vocabulary = [(piece, score) for piece, score in spec["model"]["vocab"]]
    ours = XLMRobertaTokenizer(vocabulary, add_prefix_space=add_prefix_space)
    theirs = Reference(vocabulary, add_prefix_space=add_prefix_space)
    same(ours, theirs, TEXTS, return_offsets_mapping=True)
    same(ours, theirs, TEXTS, TEXTS[::-1])
    assert ours.batch_decode(ours(TEXTS).input_ids) == theirs.batch_decode(theirs(TEXTS).input_ids)
    assert XLMRobertaTokenizer()("word").input_ids == Reference()("word").input_ids
    with pytest.raises(UserError, match="mapping"):
        XLMRobertaTokenizer({"a": 1})
    with pytest.raises(UserError, match="one of"):
        XLMRobertaTokenizer(vocabulary, tokenizer_file=small / "tokenizer.json")
    file = XLMRobertaTokenizer(tokenizer_file=small / "tokenizer.json")
    assert file(TEXTS).data == XLMRobertaTokenizer.from_pretrained(small)(TEXTS).data


def test_missing_and_broken_files_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json and sentencepiece.bpe.model") as caught:
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1")
    with pytest.raises(UserError, match=r"tokenizer_config.json"):
        XLMRobertaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        XLMRobertaTokenizer(vocab_file=tmp_path / "none")
    with pytest.raises(UserError, match="no such folder"):
        XLMRobertaTokenizer().save_vocabulary(tmp_path / "none")
