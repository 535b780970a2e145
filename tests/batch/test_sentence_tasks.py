"""The tasks on sentences in the stages of a job, without a cluster: the Python answers, row by row, and error rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from tests.models import add_tokenizer, make_config, save_classifier
from tests.tasks.texts import languages
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch import codes
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.stages.block import from_block, raise_failure, to_block
from xlmr_ray.batch.stages.encode import Encode
from xlmr_ray.batch.stages.recipe import shard_to_json
from xlmr_ray.batch.stages.tokenize import Tokenize
from xlmr_ray.batch.store.open import open_store

TEXTS = [articles[0] for articles in languages().values()][:8]
PAIRED = [{"text": one, "text_pair": other} for one, other in zip(TEXTS, reversed(TEXTS), strict=True)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint for each task, in a folder of its name."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, kind in [
        ("fill-mask", transformers.XLMRobertaForMaskedLM),
        ("multiple-choice", transformers.XLMRobertaForMultipleChoice),
        ("sentence-similarity", transformers.XLMRobertaModel),
    ]:
        kind(make_config()).save_pretrained(folder / name)
        add_tokenizer(folder / name)
    save_classifier(folder / "rerank", num_labels=1)
    labels = {"contradiction": 0, "neutral": 1, "entailment": 2}
    save_classifier(
        folder / "zero-shot-classification", id2label={i: label for label, i in labels.items()}, label2id=labels
    )
    return folder


def run(tmp_path, checkpoints, task, table, **options):
    """Output rows and error rows of a job over the table."""
    pq.write_table(table, tmp_path / "in.parquet")
    roles = {name: name for name in ("text_pair", "choices") if name in table.column_names}
    content = {
        "model": str(checkpoints / task),
        "input": {"path": str(tmp_path / "in.parquet"), **roles},
        "tasks": [{"task": task, **options}],
        "output": {"path": str(tmp_path / "out")},
        "engine": {"device": "cpu"},
    }
    output, errors = run_content(tmp_path, content)
    assert output.num_rows + errors.num_rows == table.num_rows
    return output, errors


def run_content(tmp_path, content):
    """Output rows and error rows of a job of one shard."""
    prepared = prepare_run(check_job(content, "job"), open_store(str(tmp_path / "out")))
    tokenize, encode = Tokenize(prepared.recipe), Encode(prepared.recipe)
    (shard,) = prepared.plan.shards
    block = encode(tokenize(to_block(shard_to_json(shard), {})))
    raise_failure(block.to_pylist()[0])
    _, tables = from_block(block)
    return tables["output"], tables["errors"]


def fields(task, output):
    return output.select(task.schema.names).to_pylist()


def test_fill_mask(tmp_path, checkpoints):
    texts = [f"{text[:20]} <mask> {text[20:30]}{i % 2 * '<mask>'}" for i, text in enumerate(TEXTS)]
    given = [texts[0], "no mask", *texts[1:], "", "words " * 90 + "<mask>"]
    output, errors = run(tmp_path, checkpoints, "fill-mask", pa.table({"text": given}), top_k=3)
    pipe = pipeline("fill-mask", checkpoints / "fill-mask", device="cpu", top_k=3)
    assert fields(pipe.task, output) == pipe.table(texts).to_pylist()
    assert output["row"].to_pylist() == [0, *range(2, len(texts) + 1)]
    assert [(e["row"], e["code"], e["message"]) for e in errors.to_pylist()] == [
        (1, codes.NO_MASK, "the text has no <mask>"),
        (len(texts) + 1, codes.EMPTY_TEXT, "the text is empty"),
        (len(texts) + 2, codes.NO_MASK, "the text has no <mask> among its first 64 tokens"),
    ]


def test_zero_shot_classification(tmp_path, checkpoints):
    name, labels = "zero-shot-classification", ["law", "sport", "人权"]
    given = pa.table({"text": [*TEXTS[:3], None, *TEXTS[3:]]})
    output, errors = run(tmp_path, checkpoints, name, given, candidate_labels=labels)
    pipe = pipeline(name, checkpoints / name, device="cpu", candidate_labels=labels)
    assert fields(pipe.task, output) == pipe.table(TEXTS).to_pylist()
    assert [(e["row"], e["code"]) for e in errors.to_pylist()] == [(3, codes.NULL_FIELD)]
    (tmp_path / "again").mkdir()
    with pytest.raises(UserError, match="candidate_labels is missing"):
        run(tmp_path / "again", checkpoints, name, given)


def test_multiple_choice(tmp_path, checkpoints):
    choices = [[text[:30] for text in TEXTS[: 1 + i % 4]] for i in range(len(TEXTS))]
    given = pa.table({"text": [TEXTS[0], "t", *TEXTS[1:], "t"], "choices": [choices[0], [], *choices[1:], ["a", None]]})
    output, errors = run(tmp_path, checkpoints, "multiple-choice", given)
    pipe = pipeline("multiple-choice", checkpoints / "multiple-choice", device="cpu")
    wanted = pipe.table([{"text": text, "choices": own} for text, own in zip(TEXTS, choices, strict=True)])
    assert fields(pipe.task, output) == wanted.to_pylist()
    assert [(e["row"], e["code"], e["message"]) for e in errors.to_pylist()] == [
        (1, codes.WRONG_TYPE, "row 1: field 'choices' is an empty array"),
        (len(TEXTS) + 1, codes.WRONG_TYPE, f"row {len(TEXTS) + 1}: field 'choices': item 1 is null, not a string"),
    ]
    as_json = pa.table({"text": TEXTS, "choices": [json.dumps(own) for own in choices]})
    (tmp_path / "json").mkdir()
    assert run(tmp_path / "json", checkpoints, "multiple-choice", as_json)[0]["scores"].equals(output["scores"])


@pytest.mark.parametrize("form", ["lists", "JSON", "JSON Lines"])
def test_given_passages(tmp_path, checkpoints, form):
    """Of a checkpoint without a head, as that of sentence-similarity is."""
    spans = [[[0, 10], [5, 30]], [], *([[0, len(text)]] for text in TEXTS[2:])]
    wrong = [[[0, 99]], [[3, 1]], [[-1, 2]]]
    rows = [{"text": one, "spans": own} for one, own in zip([*TEXTS, "a", "b", "c"], spans + wrong, strict=True)]
    source = tmp_path / "in.parquet"
    table = pa.Table.from_pylist(rows)
    if form == "JSON":
        table = pa.Table.from_pylist([{**row, "spans": json.dumps(row["spans"])} for row in rows])
    if form == "JSON Lines":
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(table, source)
    content = {
        "model": str(checkpoints / "sentence-similarity"),
        "input": {"path": str(source), "spans": "spans"},
        "tasks": ["passage-embedding"],
        "output": {"path": str(tmp_path / "out")},
        "engine": {"device": "cpu"},
    }
    output, errors = run_content(tmp_path, content)
    pipe = pipeline("passage-embedding", checkpoints / "sentence-similarity", device="cpu", spans=True)
    assert fields(pipe.task, output) == pipe.table(rows[:-3]).to_pylist()
    assert [(e["row"], e["code"]) for e in errors.to_pylist()] == [
        (len(TEXTS) + i, codes.WRONG_SPANS) for i in range(3)
    ]


@pytest.mark.parametrize("name", ["rerank", "sentence-similarity"])
def test_pairs(tmp_path, checkpoints, name):
    given = pa.Table.from_pylist([*PAIRED, {"text": "t", "text_pair": ""}])
    output, errors = run(tmp_path, checkpoints, name, given)
    pipe = pipeline(name, checkpoints / name, device="cpu")
    assert fields(pipe.task, output) == pipe.table(PAIRED).to_pylist()
    assert [(e["row"], e["message"]) for e in errors.to_pylist()] == [(len(PAIRED), "the text pair is empty")]
