"""`embedding` against sentence-transformers on folders that it wrote itself."""

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from xlmr_ray import UserError, pipeline

TEXTS = [
    "Hello World!",
    "Bonjour, je suis un modèle.",
    "人人生而自由,在尊严和权利上一律平等。",
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.",
    "a",
    "",
    "many words " * 60,
    "👩‍👩‍👧 🇫🇷 é e\u0301",
    "<pad> a <pad><pad> padding id",
]
TOLERANCE = 1e-5


def reference(folder, texts=TEXTS, **options):
    return SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_folders_pooling_and_normalization(make_sentence_folder, pooling, normalize):
    folder = make_sentence_folder(pooling=pooling, normalize=normalize)
    got = np.stack(pipeline("embedding", folder, device="cpu")(TEXTS))
    wanted = reference(folder)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < TOLERANCE * max(1, np.abs(wanted).max())


def test_dense_layers(make_sentence_folder):
    folder = make_sentence_folder(dense=20)
    got = np.stack(pipeline("embedding", folder, device="cpu")(TEXTS))
    assert got.shape == (len(TEXTS), 20)
    assert np.abs(got - reference(folder)).max() < TOLERANCE


def test_the_folders_length_cuts_and_flags(make_sentence_folder):
    folder = make_sentence_folder(max_seq_length=16)
    pipe = pipeline("embedding", folder, device="cpu")
    table = pipe.table(TEXTS)
    assert np.abs(np.stack(pipe.task.answers(table)) - reference(folder)).max() < TOLERANCE
    assert max(table["tokens"].to_pylist()) == 16
    flags = dict(zip(TEXTS, table["truncated"].to_pylist(), strict=True))
    assert flags["many words " * 60] is True
    assert flags["a"] is False


def test_prompts(make_sentence_folder):
    folder = make_sentence_folder(prompts={"query": "query: ", "passage": "passage: "}, default_prompt_name="query")
    cases = [
        ({}, {}),
        ({"prompt_name": "passage"}, {"prompt_name": "passage"}),
        ({"prompt": "title: "}, {"prompt": "title: "}),
        ({"prompt": ""}, {"prompt": ""}),
    ]
    for options, theirs in cases:
        got = np.stack(pipeline("embedding", folder, device="cpu", **options)(TEXTS))
        assert np.abs(got - reference(folder, **theirs)).max() < TOLERANCE


def test_fewer_dimensions_are_normalized_again(make_sentence_folder):
    folder = make_sentence_folder()
    got = np.stack(pipeline("embedding", folder, device="cpu", dimensions=10)(TEXTS))
    wanted = reference(folder, truncate_dim=10, normalize_embeddings=True)
    assert np.abs(got - wanted).max() < TOLERANCE
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_a_plain_checkpoint_is_mean_pooled_and_not_normalized(plain_encoder):
    got = np.stack(pipeline("embedding", plain_encoder, device="cpu")(TEXTS))
    wanted = reference(plain_encoder)
    assert np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max()


def test_options_go_before_the_folder(make_sentence_folder):
    folder = make_sentence_folder()
    got = np.stack(pipeline("embedding", folder, device="cpu", pooling="cls", normalize=False)(TEXTS))
    wanted = reference(make_sentence_folder(pooling="cls", normalize=False))
    assert np.abs(got - wanted).max() < TOLERANCE * np.abs(wanted).max()


def test_half_precision_vectors(plain_encoder):
    pipe = pipeline("embedding", plain_encoder, device="cpu", normalize=True, precision="float16")
    table = pipe.table(TEXTS)
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 48)
    full = np.stack(pipeline("embedding", plain_encoder, device="cpu", normalize=True)(TEXTS))
    assert np.abs(np.stack(pipe.task.answers(table)) - full).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"poling": "cls"}, "no option 'poling', did you mean 'pooling'"),
        ({"pooling": "median"}, "pooling 'median' is none of"),
        ({"dimensions": 49}, "dimensions 49 is more than the model's 48"),
        ({"dimensions": 0}, "dimensions must be a whole number from 1 on, got 0"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
        ({"prompt_name": "query"}, "prompt_name 'query' is none of the prompts"),
        ({"prompt": "a", "prompt_name": "b"}, "prompt or prompt_name, not both"),
        ({"precision": "int4"}, "precision 'int4' is none of"),
    ],
)
def test_options_that_do_not_fit(plain_encoder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("embedding", plain_encoder, device="cpu", **options)(TEXTS)
