"""Real text in every language of the sample corpus, and the ids that XLM-R's authors published."""

from pathlib import Path

import pytest
from transformers import XLMRobertaTokenizer as Reference

from tests.tokenizer.cases import ALL, corpus, same
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

PLAIN = ["Hello World!", "Все люди рождаются свободными", "人人生而自由", "two  spaces \t and a tab", "a\nb"]


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
    assert tokenizer.encode(text) == published
    # The pre-tokenizer in this tokenizer.json keeps the space before a special token as a token.
    index = published.index(3)
    by_file = XLMRobertaTokenizer.from_pretrained(e5, pre_tokenizer="file")
    assert by_file.encode(text) == [*published[:index], 6, *published[index:]]


def test_every_language(ours, theirs) -> None:
    by_language = corpus().group_by("lang", use_threads=False).aggregate([("text", "list")])
    assert len(by_language) > 80
    articles = [sorted(texts, key=len) for texts in by_language["text_list"].to_pylist()]
    short, middle, long = ([texts[place] for texts in articles] for place in (0, len(articles[0]) // 2, -1))
    for texts in (short, middle, long):
        same(ours, theirs, texts, **ALL)
        ids = ours(texts).input_ids
        for skip in (False, True):
            assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip_special_tokens=skip)
    same(ours, theirs, middle, short, truncation=True, max_length=64, padding=True, **ALL)
    same(ours, theirs, short, long, truncation="only_second", max_length=200, return_overflowing_tokens=True, stride=9)


# transformers' class makes XLM-R's normalizer and pre-tokenizer around a tokenizer.json's vocabulary; its constructor,
# given the same file, keeps them (transformers#45488).
DEPARTURES = {
    # No character map in the file: the class drops the rest of its normalizer. AutoTokenizer and we keep the file's.
    "small": ["\u200b\u200d", "ﷺ Ⅷ ½ ① ａｂｃ", "e\u0301", "\ufeff bom", "▁▁ literal ▁ underscores"],
    # The file splits at the spaces that its normalizer left, the class and we at all that Unicode calls so.
    "e5": ["a <mask>.", "   ", "\u200b\u200d", "bom \x85", "b <s> c"],
}


@pytest.fixture(scope="session")
def rebuilt(folder: Path) -> Reference:
    return Reference.from_pretrained(folder)


def test_what_the_file_says_is_there_by_name(ours, folder, rebuilt) -> None:
    small = folder.name == "mini"
    kept = Reference(tokenizer_file=str(folder / "tokenizer.json"))
    by_file = XLMRobertaTokenizer.from_pretrained(folder, pre_tokenizer="file")
    departures = DEPARTURES["small" if small else "e5"]
    for text in [*PLAIN, *departures]:
        assert by_file(text).input_ids == kept(text).input_ids, text
        assert ours(text).input_ids == (kept if small else rebuilt)(text).input_ids, text
    assert ours(PLAIN).input_ids == rebuilt(PLAIN).input_ids
    for text in departures:
        assert kept(text).input_ids != rebuilt(text).input_ids, text
