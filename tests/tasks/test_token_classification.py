"""`token-classification` against transformers' own pipeline of that name."""

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import TOKENIZER, add_tokenizer, make_config
from xlmr_ray import UserError, pipeline

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "I-X-Y", "B-"]
STRATEGIES = ["none", "simple", "first", "average", "max"]
CRAFTED = [
    "My name is Wolfgang and I live in Berlin.",
    "",
    " ",
    "\u200b",
    "</s>",
    "<mask>",
    "<unk>",
    "<pad>",
    "a <pad> b<pad>c  <pad>d",
    "a </s> b<mask>c  <s>d",
    "☃ ☃☃ x☃y ☃",
    "人人生而自由,在尊严和权利上一律平等。",
    "東京 タワー　と富士山",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "כל בני אדם נולדו בני חורין \u202bשווים\u202c.",
    "👩‍👩‍👧 🇫🇷 é e\u0301 ½ ﷺ ㎏",
    "Donaudampfschifffahrtsgesellschaftskapitän, unconstitutionally",
    "tabs\tand\nlines\r\n and  many   spaces ",
    "NUL\x00 and \x07 bell",
    "▁▁ under ▁x",
    "(Paris,France)…“quoted”",
    "e" + "\u0301" * 30,
]


@pytest.fixture(scope="session")
def ner(tmp_path_factory) -> Path:
    torch.manual_seed(7)
    labels = dict(enumerate(LABELS))
    config = make_config(id2label=labels, label2id={name: i for i, name in labels.items()})
    model = transformers.XLMRobertaForTokenClassification(config)
    torch.nn.init.normal_(model.classifier.bias)
    folder = tmp_path_factory.mktemp("ner")
    model.save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="session")
def reference(ner):
    model = transformers.XLMRobertaForTokenClassification.from_pretrained(ner)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")

    def run(texts, *, length=64, **options):
        tokenizer.model_max_length = length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [pipe(text, **options) for text in texts]

    return run


@pytest.fixture(scope="session")
def articles(udhr) -> list[str]:
    """Articles 1 and 18 in every language."""
    table = pq.read_table(sorted(udhr.glob("*.parquet")), columns=["article", "text"])
    return [row["text"] for row in table.to_pylist() if row["article"] in (1, 18)]


def same(got, wanted, texts):
    assert len(got) == len(wanted) == len(texts)
    for mine, theirs in zip(got, wanted, strict=True):
        assert [without_score(one) for one in mine] == [without_score(one) for one in theirs]
        assert [one["score"] for one in mine] == pytest.approx([float(one["score"]) for one in theirs], abs=1e-5)


def without_score(entity):
    return {name: value for name, value in entity.items() if name != "score"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_crafted_texts(ner, reference, strategy):
    got = pipeline("token-classification", ner, device="cpu", aggregation_strategy=strategy)(CRAFTED)
    same(got, reference(CRAFTED, aggregation_strategy=strategy), CRAFTED)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_articles_in_all_languages(ner, reference, articles, strategy):
    texts = articles[STRATEGIES.index(strategy) :: 5]
    got = pipeline("ner", ner, device="cpu", aggregation_strategy=strategy, long="cut")(texts)
    same(got, reference(texts, aggregation_strategy=strategy), texts)
    assert sum(map(len, got)) > 100


@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize(("length", "stride"), [(64, 8), (64, 0), (21, 10)])
def test_windows(ner, reference, articles, strategy, length, stride):
    texts = [*CRAFTED, *articles[::24], " ".join(articles[:8])]
    pipe = pipeline(
        "token-classification", ner, device="cpu", aggregation_strategy=strategy, max_length=length, stride=stride
    )
    table = pipe.table(texts)
    wanted = reference(texts, aggregation_strategy=strategy, stride=stride, length=length)
    same(pipe.task.answers(table), wanted, texts)
    assert table["tokens"].to_pylist()[-1] > 10 * length
    assert not any(table["truncated"].to_pylist())


PIECES = st.sampled_from(
    [" ", "  ", "\n", "Wolf", "gang", "東京", "مرحبا", "é", "e\u0301", "☃", "👩‍👩‍👧", "½", "▁", "</s>", "<mask>"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES | st.text(max_size=6), max_size=30).map("".join), st.sampled_from(STRATEGIES[1:]))
def test_any_text(any_ner, text, strategy):
    pipe, reference = any_ner
    got = pipe([text], aggregation_strategy=strategy, max_length=24, stride=7)
    same(got, reference([text], aggregation_strategy=strategy, length=24, stride=7), [text])


@pytest.fixture(scope="session")
def any_ner(ner, reference):
    return pipeline("ner", ner, device="cpu"), reference


def test_a_label_a_token_over_windows(ner, articles):
    """Each token once, as the window says that shows more around it; the places are those in the whole text."""
    texts = [articles[0], "short", articles[3]]
    pipe = pipeline("ner", ner, device="cpu", max_length=24, stride=10, ignore_labels=[])
    whole = pipe.tokenizer(texts, return_offsets_mapping=True)
    for ids, offsets, entities in zip(whole["input_ids"], whole["offset_mapping"], pipe(texts), strict=True):
        assert [one["index"] for one in entities] == list(range(1, len(ids) - 1))
        assert [(one["start"], one["end"]) for one in entities] == [tuple(place) for place in offsets[1:-1]]
        assert [one["entity"] for one in entities] == wanted_labels(pipe.engine, ids[1:-1], room=22, stride=10)


def wanted_labels(engine, body, *, room, stride):
    """The first half of what two windows share is labelled as in the earlier one."""
    step = room - stride
    begins = [0]
    while begins[-1] + room < len(body):
        begins.append(begins[-1] + step)
    windows = [[0, *body[begin : begin + room], 2] for begin in begins]
    raw = engine.run(pa.array(windows, pa.list_(pa.int32()))).raw[0].argmax(axis=1).tolist()
    labels = []
    for begin, ids in zip(begins, windows, strict=True):
        mine, raw = raw[1 : len(ids) - 1], raw[len(ids) :]
        labels[begin + (stride // 2 if begin else 0) :] = mine[stride // 2 if begin else 0 :]
    return [LABELS[label] for label in labels]


@pytest.mark.parametrize("ignored", [[], ["PER", "LOC"], ["B-PER", "O", "MISC"], [""]])
@pytest.mark.parametrize("strategy", ["none", "simple", "max"])
def test_ignored_labels(ner, reference, articles, ignored, strategy):
    texts = [*CRAFTED[:5], *articles[:3]]
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    got = pipeline("token-classification", ner, device="cpu", long="cut", **options)(texts)
    same(got, reference(texts, **options), texts)


def test_the_output_table(ner, articles):
    texts = ["Wolfgang lives in Berlin, 東京 and 👩‍👩‍👧.", "", articles[0]]
    pipe = pipeline("ner", ner, device="cpu", aggregation_strategy="simple", ignore_labels=[])
    table = pipe.table(texts)
    entity = [("label", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
    entity += [("text", pa.string()), ("word", pa.string())]
    assert table.schema == pipe.task.schema
    assert table.schema == pa.schema(
        [("entities", pa.list_(pa.struct(entity))), ("tokens", pa.int32()), ("truncated", pa.bool_())]
    )
    for text, row in zip(texts, table.to_pylist(), strict=True):
        assert all(text[one["start"] : one["end"]] == one["text"] for one in row["entities"])
    assert table["entities"].to_pylist()[1] == []
    cut = pipeline("ner", ner, device="cpu", long="cut", max_length=16).table(texts)
    assert cut["truncated"].to_pylist() == [True, False, True]
    assert cut["tokens"].to_pylist() == [16, 2, 16]


def test_results_do_not_depend_on_the_others(ner, articles):
    pipe = pipeline("ner", ner, device="cpu", aggregation_strategy="average")
    texts = [*CRAFTED, *articles[:4]]
    alone = pa.concat_tables([pipe.table(text) for text in texts])
    assert alone.to_pylist() == pipe.table(texts).to_pylist()


def test_documents_that_are_left_out(ner, articles):
    """The rows of a document that failed are not there any more: the others' results are the same."""
    pipe = pipeline("ner", ner, device="cpu", aggregation_strategy="simple")
    encoded = pipe.task.prepare(pa.table({"text": articles[:4]}), pipe.tokenizer)
    raw = pipe.engine.run(encoded["input_ids"]).raw[0]
    whole = pipe.task.postprocess(raw, encoded)
    document = encoded["document"].to_numpy()
    keep = ~np.isin(document, [0, 2])
    tokens = np.repeat(keep, np.diff(encoded["input_ids"].combine_chunks().offsets.to_numpy()))
    some = pipe.task.postprocess(raw[tokens], encoded.filter(pa.array(keep)))
    assert some.to_pylist() == whole.take(pa.array([1, 3])).to_pylist()


def test_no_texts(ner):
    for strategy in STRATEGIES:
        pipe = pipeline("ner", ner, device="cpu", aggregation_strategy=strategy)
        assert pipe([]) == []
        assert pipe([""]) == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation_strategy": "median"}, "aggregation_strategy 'median' is none of none, simple, first"),
        ({"agregation_strategy": "max"}, "no option 'agregation_strategy', did you mean 'aggregation_strategy'"),
        ({"ignore_labels": "O"}, "ignore_labels must be a list of labels, got 'O'"),
        ({"stride": 62}, "stride must be a whole number from 0 to 61, less than the 62 tokens of text in a window"),
        ({"stride": -1}, "stride must be a whole number from 0 to 61"),
        ({"stride": 8, "long": "cut"}, "stride is for windows"),
        ({"long": "loose"}, "long 'loose' is none of windows, cut"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
    ],
)
def test_options_that_do_not_fit(ner, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("ner", ner, device="cpu", **options)(["a"])


def test_a_checkpoint_without_the_head(plain_encoder):
    with pytest.raises(UserError, match=r"classifier\.weight"):
        pipeline("ner", plain_encoder, device="cpu")
