"""Real text in every language of the sample corpus, and the ids that XLM-R's authors published."""

from pathlib import Path

from tests.tokenizer.cases import articles
from xlmr_ray.tokenizer import XLMRobertaTokenizer


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


def test_every_language(ours, theirs) -> None:
    texts = articles()[::11]
    expected = theirs(texts, return_offsets_mapping=True)
    actual = ours(texts, return_offsets_mapping=True)
    assert actual.data == expected.data
    assert ours.batch_decode(actual.input_ids) == theirs.batch_decode(expected.input_ids)
