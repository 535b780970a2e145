"""`question-answering` against what transformers 4.57's pipeline of that name answered (`reference_answers.py`)."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.tasks.reference_answers import CASES, CRAFTED, LENGTH, articles, pairs_of, save_checkpoint
from xlmr_ray import UserError, pipeline
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

REFERENCE = json.loads((Path(__file__).parent / "data" / "reference_answers.json").read_text("utf-8"))
LONG = ("Where?", "\n".join(context for _, context in articles()[:4]))


@pytest.fixture(scope="session")
def spans(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("spans"))


@pytest.fixture(scope="session")
def pipe(spans):
    return pipeline("question-answering", spans, device="cpu")


def asked(pairs):
    return [{"question": question, "context": context} for question, context in pairs]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[json.dumps(options) for options, _, _ in CASES])
def test_the_references_answers(pipe, case):
    options, pairs = CASES[case][0], pairs_of(case)
    assert REFERENCE["results"][case]["options"] == options
    wanted = REFERENCE["results"][case]["answers"]
    got = pipe(asked(pairs), **options)
    assert len(got) == len(wanted) == len(pairs)
    for (_, context), mine, theirs in zip(pairs, got, wanted, strict=True):
        mine = mine if isinstance(mine, list) else [mine]
        # Beyond the real ones, transformers may have some of no score, whichever its sorting comes upon.
        theirs = [one for one in theirs if one[0] > 0] or theirs[:1]
        assert [(one["start"], one["end"], one["answer"]) for one in mine] == [tuple(one[1:]) for one in theirs]
        assert [one["score"] for one in mine] == pytest.approx([one[0] for one in theirs], abs=1e-5)
        assert all(context[one["start"] : one["end"]] == one["answer"] for one in mine)


def test_more_than_ten_windows_are_among_the_cases(pipe):
    encoded = pipe.task.prepare(pa.Table.from_pylist(asked(pairs_of(0))), pipe.tokenizer)
    assert np.bincount(encoded["document"].to_numpy()).max() > 10


def test_the_output_table(pipe):
    pairs = asked([CRAFTED[0], CRAFTED[4], LONG])
    table = pipe.table(pairs)
    answer = [("answer", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
    about = [("tokens", pa.int32()), ("truncated", pa.bool_())]
    assert table.schema == pipe.task.schema == pa.schema([*answer, *about])
    whole = [len(pipe.tokenizer(pair["question"], pair["context"])["input_ids"]) for pair in pairs]
    assert table["tokens"].to_pylist() == whole
    assert whole[2] > 10 * LENGTH
    assert table["truncated"].to_pylist() == [False, False, False]
    several = pipe.table(pairs, top_k=3)
    assert several.schema == pa.schema([("answers", pa.list_(pa.struct(answer))), *about])
    assert [len(answers) for answers in several["answers"].to_pylist()] == [3, 1, 3]
    assert several["answers"].to_pylist()[1] == [{"answer": "", "score": 0.0, "start": 0, "end": 0}]


def test_no_questions(pipe):
    assert pipe([]) == []
    assert pipe([], top_k=2) == []


def test_a_question_longer_than_the_window_is_cut_and_flagged(pipe):
    question, context = "many words " * 100, LONG[1]
    table = pipe.table(asked([(question, context), (question, "one"), ("many words " * 20, "one"), ("Who?", context)]))
    assert table["truncated"].to_pylist() == [True, True, False, False]
    encoded = pipe.task.prepare(pa.Table.from_pylist(asked([(question, context)])), pipe.tokenizer)
    pieces = pipe.tokenizer(question, add_special_tokens=False)["input_ids"]
    for ids in encoded["input_ids"].to_pylist():
        kept = ids[1 : ids.index(2)]
        assert kept == pieces[: len(kept)]
        assert 40 < len(kept) <= 64


def test_a_question_is_whole_while_windows_have_room(pipe):
    pairs = [("w " * count, LONG[1]) for count in range(1, 60, 6)]
    table = pipe.table(asked(pairs), doc_stride=20)
    assert not any(table["truncated"].to_pylist())


def test_questions_are_cut_where_that_is_asked(pipe):
    question = "What is it that all are born with?"
    options = {"max_question_len": 4}
    table = pipe.table(asked([(question, CRAFTED[0][1]), ("Who?", CRAFTED[0][1])]), **options)
    assert table["truncated"].to_pylist() == [True, False]
    encoded = pipe.bound(options).prepare(pa.Table.from_pylist(asked([(question, LONG[1])])), pipe.tokenizer)
    first = pipe.tokenizer(question, add_special_tokens=False)["input_ids"][:4]
    assert all(ids[:7] == [0, *first, 2, 2] for ids in encoded["input_ids"].to_pylist())


def test_texts_are_cut_from_the_left_where_the_tokenizer_says_so(spans, pipe):
    tokenizer = XLMRobertaTokenizer.from_pretrained(spans, truncation_side="left")
    question = "What is it that all are born with?"
    encoded = pipe.bound({"max_question_len": 4}).prepare(pa.Table.from_pylist(asked([(question, LONG[1])])), tokenizer)
    last = tokenizer(question, add_special_tokens=False)["input_ids"][-4:]
    windows = encoded["input_ids"].to_pylist()
    assert all(ids[:7] == [0, *last, 2, 2] for ids in windows)
    assert all(len(ids) == LENGTH for ids in windows[1:])


def test_results_do_not_depend_on_the_others(pipe):
    pairs = asked([*CRAFTED, LONG, *articles()[:6]])
    alone = pa.concat_tables([pipe.table(pair, top_k=4) for pair in pairs])
    assert alone.to_pylist() == pipe.table(pairs, top_k=4).to_pylist()


def test_documents_that_are_left_out(pipe):
    encoded = pipe.task.prepare(pa.Table.from_pylist(asked([LONG, CRAFTED[0], articles()[0]])), pipe.tokenizer)
    raw = pipe.engine.run(encoded["input_ids"]).raw[0]
    whole = pipe.task.postprocess(raw, encoded)
    keep = encoded["document"].to_numpy() != 0
    tokens = np.repeat(keep, np.diff(encoded["input_ids"].combine_chunks().offsets.to_numpy()))
    some = pipe.task.postprocess(raw[tokens], encoded.filter(pa.array(keep)))
    assert some.to_pylist() == whole.slice(1).to_pylist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be a whole number from 1 on, got 0"),
        ({"top_k": None}, "top_k must be a whole number from 1 on, got None"),
        ({"max_answer_length": 3}, "no option 'max_answer_length', did you mean 'max_answer_len'"),
        ({"max_seq_len": 129}, "max_seq_len 129 is more than the 128 tokens"),
        ({"doc_stride": 123}, "doc_stride must be a whole number from 0 to 122"),
        ({"max_question_len": 60}, "max_question_len 60 and doc_stride 64 leave windows of 124 tokens no room"),
        ({"align_to_words": "yes"}, "align_to_words 'yes' is none of True, False"),
    ],
)
def test_options_that_do_not_fit(spans, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("question-answering", spans, device="cpu", **options)(question="Who?", context="Me")


def test_a_context_that_cannot_be_encoded(pipe):
    with pytest.raises(UserError, match="text 1 cannot be tokenized: byte 0 is not UTF-8"):
        pipe.task.prepare(
            pa.table({"question": ["a", "b"], "context": pa.array([b"x", b"\xff"]).cast(pa.string(), safe=False)}),
            pipe.tokenizer,
        )


def test_a_checkpoint_without_the_head(plain_encoder):
    with pytest.raises(UserError, match=r"qa_outputs\.weight"):
        pipeline("question-answering", plain_encoder, device="cpu")
