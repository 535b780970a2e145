"""`fill-mask` against transformers' own pipeline of that name."""

import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import TOKENIZER, add_tokenizer, make_config
from tests.tasks.texts import answers, languages, tokenizer_of
from xlmr_ray import UserError, XLMRobertaConfig, XLMRobertaForMaskedLM, XLMRobertaTokenizer, pipeline
from xlmr_ray.tasks.fill_mask import FillMask
from xlmr_ray.tasks.unfit import NO_MASK, UnfitRows

ODD = [
    "<mask>",
    "<mask><mask> <mask>",
    "👩‍👩‍👧 🇫🇷<mask>é e\u0301",
    "人人生而<mask>,在尊严和权利上一律平等。",
    "الجملة <mask> هنا \u202eabc",
    "</s> <mask> <s>",
    "<pad> a <mask> after <pad> and before <pad>",
    "a <mask> in a text that is too long, " + "many words " * 60,
    "two <mask> and <mask>, the second of them " * 2,
]


def masked(text):
    """The text with its third word masked, or a character in the middle where it has no words."""
    words = text.split()
    if len(words) > 4:
        words[2] = "<mask>"
        return " ".join(words)
    return f"{text[:4]}<mask>{text[5:]}"


TEXTS = [masked(articles[0]) for articles in languages().values()] + ODD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("masked")
    transformers.XLMRobertaForMaskedLM(make_config()).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder):
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    return lambda texts, **options: [pipe(text, tokenizer_kwargs={"truncation": True}, **options) for text in texts]


def same(got, wanted):
    if isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            same(one, other)
    else:
        score = wanted.pop("score")
        assert got.pop("score") == pytest.approx(score, abs=1e-5, rel=1e-4)
        assert got == wanted


def test_fills_are_the_references(folder, reference):
    assert len(languages()) > 20
    got = answers(pipeline("fill-mask", folder, device="cpu"), text=TEXTS)
    same(got, reference(TEXTS))
    assert [isinstance(answer[0], list) for answer in got[-len(ODD) :]] == [0, 1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 40}], ids=str)
def test_top_k(folder, reference, options):
    got = answers(pipeline("fill-mask", folder, device="cpu", **options), text=TEXTS[::6])
    same(got, reference(TEXTS[::6], **options))


@pytest.mark.parametrize("targets", [["▁de", "▁la", "a"], "▁de", ["unheardofword", "▁de", "▁de", "了"]], ids=str)
def test_targets(folder, reference, targets, caplog):
    caplog.set_level("WARNING")  # Ray, where it was started before, raises it
    pipe = pipeline("fill-mask", folder, device="cpu", targets=targets)
    same(answers(pipe, text=TEXTS[::6]), reference(TEXTS[::6], targets=targets))
    assert ("is not one token: its first piece" in caplog.text) == ("unheardofword" in targets)


def test_targets_of_another_tokenizer(folder, tmp_path):
    """Whatever the folder's says: in the answer to the first call, with options of a call, on a model in memory."""
    spec = json.loads((TOKENIZER / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    place = {piece: index for index, (piece, _) in enumerate(vocabulary)}
    one, other = place["▁de"], place["▁la"]
    vocabulary[one][0], vocabulary[other][0] = vocabulary[other][0], vocabulary[one][0]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), mask_token="<mask>", unk_token="<unk>", model_max_length=64
    )
    texts = ["a <mask> here", "人人<mask>,在", "la <mask>"]
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    pipe = transformers.pipeline("fill-mask", model=model, tokenizer=theirs, device="cpu")
    wanted = [[(each["token"], each["score"]) for each in pipe(text, targets=["▁de"])] for text in texts]
    assert wanted[0][0][0] == other
    ours = XLMRobertaTokenizer(tokenizer_file=tmp_path / "tokenizer.json", model_max_length=64)
    in_memory = XLMRobertaForMaskedLM.from_pretrained(folder)
    for found in (
        pipeline("fill-mask", folder, tokenizer=ours, device="cpu", targets=["▁de"])(texts),
        pipeline("fill-mask", folder, tokenizer=ours, device="cpu")(texts, targets=["▁de"]),
        pipeline("fill-mask", in_memory, tokenizer=ours, targets=["▁de"])(texts),
    ):
        for fills, expected in zip(found, wanted, strict=True):
            assert [fill["token"] for fill in fills] == [token for token, _ in expected]
            assert [fill["score"] for fill in fills] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_a_target_of_no_token_is_left_out(folder, caplog):
    caplog.set_level("WARNING")  # Ray, where it was started before, raises it
    pipe = pipeline("fill-mask", folder, device="cpu", targets=["▁de", "\u200d"])
    assert len(pipe.task.target_ids) == 1
    assert "gives no token: left out" in caplog.text
    with pytest.raises(UserError, match=r"task fill-mask: targets: none of the \d gives a token"):
        pipeline("fill-mask", folder, device="cpu", targets=[])


def test_the_output_table(folder):
    pipe = pipeline("fill-mask", folder, device="cpu", top_k=2)
    table = pipe.table(ODD)
    fill = pa.struct([("token", pa.int32()), ("text", pa.string()), ("score", pa.float32())])
    assert table.schema == pa.schema(
        [("fills", pa.list_(pa.list_(fill))), ("tokens", pa.int32()), ("truncated", pa.bool_())]
    )
    assert [len(masks) for masks in table["fills"].to_pylist()] == [1, 3, 1, 1, 1, 1, 1, 1, 4]
    assert {len(fills) for masks in table["fills"].to_pylist() for fills in masks} == {2}
    assert table["truncated"].to_pylist() == [False] * 7 + [True, False]
    assert pipe.table([]).schema == table.schema
    assert "sequence" not in pipe.task.answers(table)[0][0]


def test_windows_of_long_texts(folder):
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    articles = list(languages().values())
    texts = [" <mask> ".join([*one[:5], ""]) + "." for one in articles[:6]] + [
        " a" * 400 + " <mask>",
        "<mask>",
        "b<mask>",
    ]
    pipe = pipeline("fill-mask", folder, device="cpu", long="windows", stride=10, top_k=1)
    table = pipe.table([*texts, "<mask>" + " c" * 300])
    assert table.schema == pipe.task.schema
    assert table["truncated"].to_pylist() == [False] * 10
    windows = table["windows"].to_pylist()
    assert windows[:6] > [1] * 6
    assert windows[6:] == [1, 1, 1, 1]
    assert table["tokens"].to_pylist()[7:] == [3, len(tokenizer("b<mask>")["input_ids"]), 64]
    for text, fills in zip(texts, table["fills"].to_pylist(), strict=False):
        inputs = tokenizer(
            text, truncation=True, stride=10, return_overflowing_tokens=True, return_tensors="pt", padding=True
        )
        ids = inputs["input_ids"]
        with torch.inference_mode():
            scores = model(ids, attention_mask=inputs["attention_mask"]).logits.softmax(-1)
        best = {}  # where a mask is in the text -> the text around it, score and token
        lengths = inputs["attention_mask"].sum(1).tolist()
        for window, length in enumerate(lengths):
            for place in (ids[window] == tokenizer.mask_token_id).nonzero().flatten().tolist():
                left = place - 1 if window else 10**6
                right = length - 2 - place if window < len(lengths) - 1 else 10**6
                score, token = scores[window, place].max(-1)
                mask = window * (62 - 10) + place
                best[mask] = max(best.get(mask, (-1,)), (min(left, right), score.item(), token.item()))
        assert len(best) == text.count("<mask>")
        wanted = [best[mask] for mask in sorted(best)]
        assert [fill[0]["token"] for fill in fills] == [token for _, _, token in wanted]
        assert [fill[0]["score"] for fill in fills] == pytest.approx([score for _, score, _ in wanted], abs=1e-5)
    whole = answers(pipe, text=texts[:2])
    assert all(len(fill["sequence"]) > 300 for masks in whole for fills in masks for fill in fills)
    short = ["a <mask> b", "<mask><mask>"]
    cut = pipeline("fill-mask", folder, device="cpu", top_k=1).table(short)
    assert pipe.table(short).drop_columns("windows").equals(cut)
    assert pipe.table([]).num_rows == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["<mask>", " a", " a", " a"]), min_size=1, max_size=60), max_size=4),
    st.integers(4, 20),
    st.integers(0, 1),
    st.sampled_from(["left", "right"]),
)
def test_every_mask_is_filled_once_and_where_most_text_is(texts, length, stride, side):
    tokenizer = tokenizer_of(side)
    mask = tokenizer.mask_token_id
    texts = [["<mask>", *text] for text in texts]
    task = FillMask(long="windows", max_length=length, stride=stride, config=XLMRobertaConfig(), folder=Path("nowhere"))
    encoded = task.prepare(pa.table({"text": pa.array(["".join(text) for text in texts], pa.string())}), tokenizer)
    assert encoded["document"].to_pylist() == sorted(encoded["document"].to_pylist())
    rows = encoded.to_pylist()
    for row in rows:
        assert len(row["input_ids"]) == len(row["targets"]) <= length
        assert all(token == mask for token, wanted in zip(row["input_ids"], row["targets"], strict=True) if wanted == 0)
        assert 0 in row["targets"]
    for number, text in enumerate(texts):
        ids = tokenizer("".join(text), add_special_tokens=False)["input_ids"]
        filled = sum(row["targets"].count(0) for row in rows if row["document"] == number)
        assert filled == ids.count(mask)
        room, step = length - 2, length - 2 - stride
        starts = [s for s in range(0, len(ids), step) if s == 0 or s + stride < len(ids)]
        spans = [(s, min(s + room, len(ids))) for s in starts]
        if side == "left":
            spans = [(len(ids) - end, len(ids) - start) for start, end in reversed(spans)]
        around = []  # the least text beside each mask, the text's own ends apart, at its best
        for place in (place for place, token in enumerate(ids) if token == mask):
            sides = [
                min(place - start if start else 999, end - 1 - place if end < len(ids) else 999)
                for start, end in spans
                if start <= place < end
            ]
            around.append(max(sides))
        got = []
        for row in (row for row in rows if row["document"] == number):
            inner = row["input_ids"][1:-1]
            # Where the same tokens stand twice, any of the places is right.
            places = [(s, s + len(inner) < len(ids)) for s, end in spans if ids[s:end] == inner]
            assert places
            wanted = [at - 1 for at, target in enumerate(row["targets"]) if target == 0]
            got += [
                {min(at if s else 999, len(inner) - 1 - at if more else 999) for s, more in places} for at in wanted
            ]
        assert all(wanted in best for wanted, best in zip(around, got, strict=True))


def test_results_do_not_depend_on_the_batch(folder):
    together = pipeline("fill-mask", folder, device="cpu")
    alone = pipeline("fill-mask", folder, device="cpu", max_tokens=1)
    many = ["<mask>" * 60, *TEXTS[:5], "<mask> " * 60]  # more masks than are computed at a time
    assert together.table(many).equals(alone.table(many))


def test_texts_without_a_mask_are_told_all_at_once(folder):
    pipe = pipeline("fill-mask", folder, device="cpu")
    with pytest.raises(UserError, match=r"^text 1: no_mask: the text has no <mask> \(and 2 texts more\)$"):
        pipe(["a <mask>", "no", "", "many words " * 60 + "<mask>"])
    with pytest.raises(UnfitRows) as caught:
        pipe(["a <mask>", "no", "", "many words " * 60 + "<mask>"])
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.failures == {
        1: (NO_MASK, "the text has no <mask>"),
        2: (NO_MASK, "the text has no <mask>"),
        3: (NO_MASK, "the text has no <mask> among its first 64 tokens"),
    }
    assert (error.index, error.reason) == (1, "the text has no <mask>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 1}, "no option 'topk', did you mean 'top_k'"),
        ({"top_k": 0}, "top_k must be a whole number from 1 on, got 0"),
        ({"top_k": None}, "top_k must be a whole number from 1 on, got None"),
        ({"targets": 3}, "targets must be a word or a list of words, got 3"),
        ({"targets": ["a", 3]}, "targets must be a word or a list of words"),
        ({"stride": 3}, "stride 3 is for windows, and long is cut"),
        ({"long": "windows", "stride": 62}, "stride must be a whole number from 0 to 61"),
        ({"long": "whole"}, "long 'whole' is none of cut, windows"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("fill-mask", folder, device="cpu", **options)(["<mask>"])


def test_a_checkpoint_without_the_head(plain_encoder):
    with pytest.raises(UserError, match=r"lm_head\."):
        pipeline("fill-mask", plain_encoder, device="cpu")
