"""`passage-embedding` against the mean of transformers' token states of the same text, passage by passage."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.tasks.texts import corpus
from xlmr_ray import UserError, pipeline
from xlmr_ray.tokenizer.tokenizer import TokenizerError

TEXTS = corpus()


@pytest.fixture(scope="module")
def states(plain_encoder):
    """Of a text of one sequence: the states of its tokens and their characters, by transformers."""
    model = transformers.XLMRobertaModel.from_pretrained(plain_encoder, add_pooling_layer=False).eval()
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu")

    def of(text):
        inputs = pipe.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].numpy()
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0].double().numpy()
        return hidden[1:-1], offsets[1:-1]

    return of


def short(pipe, texts):
    table = pipe.tokenizer.encode_ragged(pa.array(texts), max_length=10_000, truncation="do_not_truncate")
    return [text for text, count in zip(texts, table.lengths, strict=True) if 3 < count <= 64]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_the_mean_of_each_passages_tokens(plain_encoder, states, size):
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu", passage_tokens=size)
    texts = short(pipe, TEXTS)
    assert len(texts) > 15
    for text, row in zip(texts, pipe.table(texts).to_pylist(), strict=True):
        hidden, offsets = states(text)
        parts = range(0, len(hidden), size)
        assert len(row["embeddings"]) == len(parts)
        for first, got, start, end in zip(parts, row["embeddings"], row["start"], row["end"], strict=True):
            expected = hidden[first : first + size].mean(0)
            assert np.abs(np.array(got) - expected).max() < 1e-5 * max(1, np.abs(expected).max())
            own = offsets[first : first + size]
            assert (start, end) == (own[:, 0].min(), own[:, 1].max())


def test_sentences(plain_encoder, states):
    text = 'It is late. "Go home!" 3.5 km are far。再见。 Is it?\nNo'
    sentences = ["It is late. ", '"Go home!" ', "3.5 km are far。", "再见。 ", "Is it?\n", "No"]
    assert "".join(sentences) == text
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu", passage="sentences", normalize=True)
    (found,) = pipe([text])
    hidden, offsets = states(text)
    ends = np.cumsum([len(one) for one in sentences])
    owner = np.searchsorted(ends, offsets[:, 0], side="right")
    assert len(found) == len(sentences)
    for number, one in enumerate(found):
        expected = hidden[owner == number].mean(0)
        expected = expected / np.linalg.norm(expected)
        assert np.abs(one["embedding"] - expected).max() < 1e-5
        assert text[one["start"] : one["end"]].strip() == sentences[number].strip()


def test_a_long_document_goes_in_windows_and_every_token_counts_once(plain_encoder):
    text = " ".join(TEXTS[:8])
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu", passage_tokens=1, max_length=32, stride=8)
    (row,) = pipe.table([text]).to_pylist()
    assert row["windows"] > 5
    whole = pipe.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert list(zip(row["start"], row["end"], strict=True)) == list(map(tuple, whole["offset_mapping"]))
    assert row["tokens"] == len(whole["input_ids"]) + 2


GIVEN = "It is late. Go home! 再见。Is it? No"
SPANS = [[0, 11], [12, 20], [3, 16], [21, 24], [31, 33], [15, 16], [0, 33]]


def test_given_spans(plain_encoder, states):
    """Spans that overlap, that begin inside of a token, in any order: each has the tokens that reach into it."""
    hidden, offsets = states(GIVEN)
    whole = pipeline("passage-embedding", plain_encoder, device="cpu")
    (found,) = whole([{"text": GIVEN, "spans": SPANS}])
    assert [[one["start"], one["end"]] for one in found] == SPANS
    for (start, end), one in zip(SPANS, found, strict=True):
        expected = hidden[(offsets[:, 0] < end) & (offsets[:, 1] > start)].mean(0)
        assert np.abs(one["embedding"] - expected).max() < 1e-5 * np.abs(expected).max()

    pair = [
        {"text": TEXTS[0], "spans": []},
        {"text": GIVEN, "spans": json.dumps(SPANS)},
        {"text": "a", "spans": [[0, 1]]},
    ]
    none, again, one = whole(pair)
    assert none == []
    assert all(np.array_equal(a["embedding"], b["embedding"]) for a, b in zip(again, found, strict=True))
    assert len(one) == 1


def test_given_spans_of_a_document_in_windows_behind_a_prompt(plain_encoder):
    """The spans of sentences give the vectors of `passage: sentences`."""
    text = " ".join(TEXTS[:8])
    options = {"max_length": 32, "stride": 8, "prompt": "passage: ", "normalize": True}
    sentences = pipeline("passage-embedding", plain_encoder, device="cpu", passage="sentences", **options)([text])[0]
    spans = [[one["start"], one["end"]] for one in sentences]
    given = pipeline("passage-embedding", plain_encoder, device="cpu", **options)([{"text": text, "spans": spans}])[0]
    assert len(given) > 8
    for one, other in zip(given, sentences, strict=True):
        assert np.array_equal(one["embedding"], other["embedding"])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 99]], r"span 0 is \[0, 99\] in a text of 33 characters"),
        ([[0, 4], [4, 4]], r"span 1 is \[4, 4\]"),
        ([[-1, 4]], r"span 0 is \[-1, 4\]"),
        ([[0, 4], [11, 12]], "span 1 has no token"),
        ([[0, 1.5]], "the spans are no list"),
        ([[0, 1, 2]], "the spans are no list"),
        ([[0, 4, 5, 9]], "the spans are no list"),
        ([["0", "4"]], "the spans are no list"),
        ('{"01": 4}', "the spans are no list"),
        ("[[0", "the spans are no list"),
    ],
)
def test_spans_that_are_none(plain_encoder, spans, message):
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu")
    with pytest.raises((UserError, TokenizerError), match=message):
        pipe([{"text": GIVEN, "spans": spans}])


def test_a_prompt_is_read_and_belongs_to_no_passage(plain_encoder, states):
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu", prompt="passage: ", passage_tokens=3)
    text = "Hello world, this is it"
    (row,) = pipe.table([text]).to_pylist()
    hidden, offsets = states("passage: " + text)
    own = offsets[:, 1] > len("passage: ")
    expected = hidden[own][:3].mean(0)
    assert np.abs(np.array(row["embeddings"][0]) - expected).max() < 1e-5 * np.abs(expected).max()
    assert row["start"][0] == 0
    assert row["end"][-1] == len(text)


def test_texts_without_tokens_have_no_passages(plain_encoder):
    pipe = pipeline("passage-embedding", plain_encoder, device="cpu")
    assert pipe(["", "a"])[0] == []


def test_what_does_not_fit_is_refused(make_sentence_folder, plain_encoder):
    with pytest.raises(UserError, match="layer behind its pooling"):
        pipeline("passage-embedding", make_sentence_folder(dense=20), device="cpu")
    with pytest.raises(UserError, match="passage_tokens is for passage: tokens"):
        pipeline("passage-embedding", plain_encoder, device="cpu", passage="sentences", passage_tokens=4)
    with pytest.raises(UserError, match="for passages that no column of spans gives"):
        pipeline("passage-embedding", plain_encoder, device="cpu", passage="sentences", spans=True)
