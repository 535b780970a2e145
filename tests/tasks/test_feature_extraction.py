"""`feature-extraction` against transformers' own pipeline of that name, and the hidden states of its model."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from tests.models import TOKENIZER
from tests.tasks.language_models import LONG, TEXTS, same_bits_in_any_batch
from xlmr_ray import UserError, pipeline

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference(plain_encoder):
    model = transformers.XLMRobertaModel.from_pretrained(plain_encoder, add_pooling_layer=False).eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(TOKENIZER, model_max_length=64)
    return model, tokenizer


@torch.no_grad()
def states(reference, text, layers):
    """Hidden states `[tokens, layers * hidden]`."""
    model, tokenizer = reference
    out = model(**tokenizer(text, truncation=True, return_tensors="pt"), output_hidden_states=True)
    return torch.cat([out.hidden_states[layer][0] for layer in layers], dim=-1).numpy()


def test_nested_lists_as_the_references_pipeline_gives_them(plain_encoder, reference):
    model, tokenizer = reference
    theirs = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu")
    for got, wanted in zip(pipe([*TEXTS, ""]), theirs([*TEXTS, ""]), strict=True):
        assert type(got) is type(got[0]) is type(got[0][0]) is list
        assert np.shape(got) == np.shape(wanted)
        assert np.abs(np.array(got) - np.array(wanted)).max() < TOLERANCE
    assert np.shape(pipe("Hello World!")) == np.shape(theirs("Hello World!"))


@pytest.mark.parametrize("layers", [(-1,), (0,), (1, 2), [-1, -3, 0]])
def test_layers_are_put_one_after_another(plain_encoder, reference, layers):
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu", layers=layers, return_tensors=True)
    for text, got in zip([*TEXTS, LONG], pipe([*TEXTS, LONG]), strict=True):
        wanted = states(reference, text, layers)
        assert got.shape == (1, *wanted.shape)
        assert np.abs(got[0].numpy() - wanted).max() < TOLERANCE


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len"])
def test_pooled(plain_encoder, reference, pooling):
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu", layers=[1, 2], pooling=pooling)
    for text, got in zip(TEXTS, pipe(TEXTS), strict=True):
        each = states(reference, text, [1, 2])
        wanted = {
            "cls": each[0],
            "mean": each.mean(0),
            "max": each.max(0),
            "mean_sqrt_len": each.sum(0) / np.sqrt(len(each)),
        }[pooling]
        assert isinstance(got, list)
        assert np.abs(np.array(got) - wanted).max() < TOLERANCE * 3


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_output_table(plain_encoder, reference, precision, tmp_path):
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu", layers=[1, 2], precision=precision)
    table = pipe.table(["Hello World!", LONG])
    vector = pa.list_(pa.float32() if precision == "float32" else pa.float16(), 96)
    assert table.schema == pipe.task.schema
    assert table.schema.field("features").type == pa.list_(vector)
    assert table["truncated"].to_pylist() == [False, True]
    assert table["tokens"].to_pylist()[1] == 64
    ids = reference[1]("Hello World!")["input_ids"]
    assert table["input_ids"].to_pylist()[0] == ids
    assert len(table["features"][0]) == len(ids)
    pq.write_table(table, tmp_path / "features.parquet")
    assert pq.read_table(tmp_path / "features.parquet").equals(table)
    answers = pipe.task.answers(table)
    assert np.abs(np.array(answers[1])[0] - states(reference, LONG, [1, 2])).max() < 1e-2
    assert pipe.table([]).schema == table.schema
    assert pipe([]) == []


def test_the_pooled_output_table(plain_encoder):
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu", pooling="mean")
    vector = pa.list_(pa.float32(), 48)
    assert pipe.table(TEXTS).schema == pipe.task.schema
    assert pipe.task.schema == pa.schema([("features", vector), ("tokens", pa.int32()), ("truncated", pa.bool_())])


@pytest.mark.parametrize("options", [{}, {"layers": [0, -1]}, {"layers": [1, 2], "pooling": "mean"}])
def test_bits_do_not_depend_on_the_batch(plain_encoder, options):
    pipe = pipeline("feature-extraction", plain_encoder, device="cpu", **options)
    same_bits_in_any_batch(pipe, [*TEXTS, LONG, ""])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": [1]}, "no option 'layer', did you mean 'layers'"),
        ({"layers": 1}, "layers must be a list of numbers, got 1"),
        ({"layers": []}, "layers must be a list of numbers, got"),
        ({"layers": [3]}, "layers has 3, the model has 0 .embeddings. to 2, or -1 to -3"),
        ({"layers": [-4]}, "layers has -4"),
        ({"layers": ["last"]}, "layers has 'last'"),
        ({"pooling": "median"}, "pooling 'median' is none of"),
        ({"precision": "int4"}, "precision 'int4' is none of"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
        ({"return_tensors": "np"}, "return_tensors 'np' is none of"),
    ],
)
def test_options_that_do_not_fit(plain_encoder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("feature-extraction", plain_encoder, device="cpu", **options)(["a"])
