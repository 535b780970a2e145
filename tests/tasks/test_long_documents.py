"""Documents past the model's length by windows: `embedding` and `text-classification` against transformers' models on
windows made by hand.
"""

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import TOKENIZER
from tests.tasks.language_models import LONG, TEXTS, same_bits_in_any_batch
from xlmr_ray import UserError, pipeline

TOLERANCE = 1e-5
MIXED = "人人生而自由,在尊严和权利上一律平等。 Все люди рождаются свободными! many words " * 12
DOCUMENTS = [*TEXTS, LONG, MIXED, "", "word " * 62, "word " * 63]


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


@pytest.fixture(scope="module")
def classifier(make_classifier):
    return make_classifier(num_labels=3)


def sliding(length, room, stride):
    """Begin, end and how many tokens are new, of each window over so many tokens."""
    begin, windows = 0, []
    while True:
        end = min(begin + room, length)
        windows.append((begin, end, end - (windows[-1][1] if windows else 0)))
        if end == length:
            return windows
        begin = end - stride


def weighted(each, weights):
    return (np.stack(each) * np.array(weights)[:, None]).sum(0) / np.sum(weights)


@pytest.mark.parametrize(("max_length", "stride"), [(64, None), (64, 0), (24, 5), (24, 21), (3, 0)])
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
@torch.no_grad()
def test_vectors_are_averaged_by_new_tokens(plain_encoder, tokenizer, max_length, stride, pooling, normalize):
    model = transformers.XLMRobertaModel.from_pretrained(plain_encoder, add_pooling_layer=False).eval()
    options = {"long": "windows", "max_length": max_length, "pooling": pooling, "normalize": normalize}
    options |= {} if stride is None else {"stride": stride}
    shared = max_length // 8 if stride is None else stride
    texts = [text[: 12 * max_length] for text in DOCUMENTS]
    table = pipeline("embedding", plain_encoder, device="cpu", **options).table(texts)
    for text, row in zip(texts, table.to_pylist(), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = sliding(len(ids), max_length - 2, shared)
        hidden = [model(torch.tensor([[0, *ids[begin:end], 2]])).last_hidden_state[0] for begin, end, _ in windows]
        each = [(h[0] if pooling == "cls" else h.mean(0)).numpy() for h in hidden]
        wanted = weighted(each, [new + 2 * (place == 0) for place, (*_, new) in enumerate(windows)])
        if normalize:
            wanted /= np.linalg.norm(wanted)
        assert np.abs(np.array(row["embedding"]) - wanted).max() < TOLERANCE * max(1, np.abs(wanted).max())
        assert row["windows"] == len(windows)
        assert row["tokens"] == len(ids) + 2
        assert row["truncated"] is False


def softmax(logits):
    return torch.softmax(logits.double(), -1).numpy()


@pytest.mark.parametrize("stride", [None, 0, 40])
@torch.no_grad()
def test_probabilities_are_averaged_by_new_tokens(classifier, tokenizer, stride):
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(classifier).eval()
    options = {"long": "windows", "top_k": None, **({} if stride is None else {"stride": stride})}
    table = pipeline("text-classification", classifier, device="cpu", **options).table(DOCUMENTS)
    for text, row in zip(DOCUMENTS, table.to_pylist(), strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = sliding(len(ids), 62, 8 if stride is None else stride)
        each = [softmax(model(torch.tensor([[0, *ids[begin:end], 2]])).logits[0]) for begin, end, _ in windows]
        wanted = weighted(each, [new + 2 * (place == 0) for place, (*_, new) in enumerate(windows)])
        got = {answer["label"]: answer["score"] for answer in row["labels"]}
        assert [got[f"LABEL_{i}"] for i in range(3)] == pytest.approx(wanted, abs=TOLERANCE)
        assert row["windows"] == len(windows)
    assert max(table["windows"].to_pylist()) > 4


PAIRS = [
    ("a premise of some words", LONG),
    (LONG, "a hypothesis of some words"),
    (LONG, MIXED),
    (MIXED, LONG),
    (LONG, LONG),
    ("short", "texts"),
    ("word " * 30, "word " * 30),
    ("word " * 29, "word " * 32),
    (LONG, ""),
    ("", ""),
]


@torch.no_grad()
def test_of_a_pair_the_longer_text_goes_by_windows(classifier, tokenizer):
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(classifier).eval()
    options = {"long": "windows", "stride": 5, "top_k": None, "pairs": True}
    inputs = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    rows = pipeline("text-classification", classifier, device="cpu", **options).table(inputs).to_pylist()
    for pair, row in zip(PAIRS, rows, strict=True):
        sides = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in pair]
        longer = int(len(sides[1]) > len(sides[0]))
        short = sides[1 - longer]
        cut = len(sides[0]) + len(sides[1]) > 60 and len(short) > 30
        short = short[:30] if cut else short
        windows = sliding(len(sides[longer]), 60 - len(short), 5)
        each, weights = [], []
        for place, (begin, end, new) in enumerate(windows):
            parts = [short, short]
            parts[longer] = sides[longer][begin:end]
            each.append(softmax(model(torch.tensor([[0, *parts[0], 2, 2, *parts[1], 2]])).logits[0]))
            weights.append(new + (len(short) + 4) * (place == 0))
        got = {answer["label"]: answer["score"] for answer in row["labels"]}
        assert [got[f"LABEL_{i}"] for i in range(3)] == pytest.approx(weighted(each, weights), abs=TOLERANCE)
        assert (row["windows"], row["truncated"]) == (len(windows), cut)
        assert row["tokens"] == len(sides[longer]) + len(short) + 4


def test_documents_that_fit_are_as_without_windows(plain_encoder, classifier):
    fits = [text for text in DOCUMENTS if len(text) < 100]
    for task, folder, options in (
        ("embedding", plain_encoder, {"normalize": True}),
        ("embedding", plain_encoder, {"precision": "float16", "dimensions": 20}),
        ("text-classification", classifier, {"top_k": 2}),
    ):
        cut = pipeline(task, folder, device="cpu", **options).table(fits)
        windows = pipeline(task, folder, device="cpu", long="windows", **options).table(fits)
        assert windows["windows"].to_pylist() == [1] * len(fits)
        assert windows.drop_columns("windows").equals(cut)


def test_prompts_stand_before_the_first_window(make_sentence_folder):
    folder = make_sentence_folder(prompts={"query": "query: "})
    got = pipeline("embedding", folder, device="cpu", long="windows", prompt_name="query")([LONG])
    assert np.array_equal(got, pipeline("embedding", folder, device="cpu", long="windows")(["query: " + LONG]))


def test_the_output_tables(plain_encoder, classifier):
    ends = [("tokens", pa.int32()), ("truncated", pa.bool_()), ("windows", pa.int32())]
    pipe = pipeline("embedding", plain_encoder, device="cpu", long="windows")
    assert pipe.task.schema == pa.schema([("embedding", pa.list_(pa.float32(), 48)), *ends])
    assert pipe.table([]).schema == pipe.table([LONG]).schema == pipe.task.schema
    pipe = pipeline("text-classification", classifier, device="cpu", long="windows")
    assert pipe.task.schema == pa.schema([("label", pa.string()), ("score", pa.float32()), *ends])
    assert pipe.table([]).schema == pipe.table([LONG]).schema == pipe.task.schema


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("embedding", {"normalize": True}),
        ("embedding", {"normalize": False, "pooling": "max", "max_length": 20}),
        ("text-classification", {"top_k": None}),
    ],
)
def test_bits_do_not_depend_on_the_batch(classifier, task, options):
    pipe = pipeline(task, classifier, device="cpu", long="windows", **options)
    same_bits_in_any_batch(pipe, DOCUMENTS)


@pytest.mark.parametrize("task", ["embedding", "text-classification"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long": "window"}, "long 'window' is none of cut, windows"),
        ({"stride": 3}, "stride 3 is for windows, and long is cut"),
        ({"long": "windows", "stride": -1}, "stride must be a whole number from 0 to 61"),
        ({"long": "windows", "stride": 62}, "stride must be a whole number from 0 to 61"),
        ({"long": "windows", "max_length": 2}, "max_length 2 leaves no room for text beside 2 special tokens"),
        ({"long": "windows", "stride": "5"}, "stride must be a whole number from 0 to 61"),
    ],
)
def test_options_that_do_not_fit(classifier, task, options, message):
    with pytest.raises(UserError, match=message):
        pipeline(task, classifier, device="cpu", **options)(["a"])


def test_strides_of_pairs_leave_room_for_the_other_text(classifier):
    pair = {"text": "a", "text_pair": "b"}
    pipe = pipeline("text-classification", classifier, device="cpu", pairs=True, long="windows", stride=30)
    with pytest.raises(UserError, match="stride must be a whole number from 0 to 29"):
        pipe(pair)
