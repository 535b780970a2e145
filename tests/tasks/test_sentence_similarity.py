"""`sentence-similarity` against sentence-transformers."""

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from tests.tasks.texts import ODD, corpus, languages
from xlmr_ray import UserError, pipeline
from xlmr_ray.tasks.encoded import keep_documents

TEXTS = corpus()
PAIRS = [{"text": one, "text_pair": other} for one, other in zip(TEXTS, [*TEXTS[1:], ""], strict=True)]


def reference(folder, name, **options):
    model = SentenceTransformer(str(folder), device="cpu", similarity_fn_name=name)
    first, second = (model.encode([pair[role] for pair in PAIRS], **options) for role in ("text", "text_pair"))
    return model.similarity_pairwise(first, second).tolist()


def close(got, wanted):
    assert np.abs(np.array(got) - wanted).max() < 1e-5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_are_the_references(make_sentence_folder, similarity):
    assert len(languages()) > 20
    folder = make_sentence_folder(pooling="mean", normalize=False)
    got = pipeline("sentence-similarity", folder, device="cpu", similarity=similarity)(PAIRS)
    close(got, reference(folder, similarity))


def test_what_the_folder_says(make_sentence_folder):
    folder = make_sentence_folder(
        pooling="cls", normalize=False, dense=20, similarity_fn_name="euclidean", prompts={"query": "query: "}
    )
    close(pipeline("sentence-similarity", folder, device="cpu")(PAIRS), reference(folder, "euclidean"))
    prompted = pipeline("sentence-similarity", folder, device="cpu", prompt_name="query", similarity="dot")
    close(prompted(PAIRS), reference(folder, "dot", prompt_name="query"))


def test_a_plain_checkpoint(plain_encoder):
    close(pipeline("sentence-similarity", plain_encoder, device="cpu")(PAIRS), reference(plain_encoder, "cosine"))


def test_the_output_table(plain_encoder):
    pipe = pipeline("sentence-similarity", plain_encoder, device="cpu")
    table = pipe.table(PAIRS)
    assert table.schema == pa.schema([("score", pa.float32()), ("tokens", pa.int32()), ("truncated", pa.bool_())])
    assert table.schema == pipe.task.schema
    lengths = [[len(pipe.tokenizer(pair[role])["input_ids"]) for role in ("text", "text_pair")] for pair in PAIRS]
    assert table["truncated"].to_pylist() == [max(both) > 64 for both in lengths]
    assert table["tokens"].to_pylist() == [sum(min(one, 64) for one in both) for both in lengths]
    assert pipe.table([]).equals(table.slice(0, 0))
    assert pipe.table([{"text": ODD[2], "text_pair": ODD[2]}])["score"].to_pylist() == [pytest.approx(1, abs=1e-6)]


def test_windows_of_long_texts(plain_encoder):
    options = {"long": "windows", "stride": 9, "device": "cpu"}
    pairs = [{"text": " ".join(TEXTS[i : i + 3]), "text_pair": TEXTS[i]} for i in range(8)]
    table = pipeline("sentence-similarity", plain_encoder, **options).table(pairs)
    vectors = pipeline("embedding", plain_encoder, normalize=True, **options)
    first, second = (vectors.table([pair[role] for pair in pairs]) for role in ("text", "text_pair"))
    both = [np.stack(vectors.task.answers(one)) for one in (first, second)]
    close(table["score"].to_pylist(), (both[0] * both[1]).sum(axis=1))
    for name in ("tokens", "windows"):
        assert table[name].to_pylist() == np.add(first[name].to_numpy(), second[name].to_numpy()).tolist()
    assert max(table["windows"].to_pylist()) > 3
    assert table["truncated"].to_pylist() == [False] * 8


def test_documents_may_be_taken_out(plain_encoder):
    pipe = pipeline("sentence-similarity", plain_encoder, device="cpu")
    columns = pa.table({role: [pair[role] for pair in PAIRS] for role in ("text", "text_pair")})
    encoded = pipe.task.prepare(columns, pipe.tokenizer)
    raw = pipe.engine.run(encoded["input_ids"]).raw[0]
    table = pipe.task.postprocess(raw, encoded)
    kept = np.arange(len(PAIRS)) % 3 == 0
    left, stayed = keep_documents(encoded, kept)
    assert pipe.task.postprocess(raw[stayed], left).equals(table.filter(pa.array(kept)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": "cos"}, "task sentence-similarity: similarity 'cos' is none of"),
        ({"pooling": "median"}, "task sentence-similarity: pooling 'median' is none of"),
        ({"precision": "float16"}, "task sentence-similarity: no option 'precision'"),
        ({"max_length": 65}, "max_length 65 is more than the 64 tokens"),
    ],
)
def test_options_that_do_not_fit(plain_encoder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("sentence-similarity", plain_encoder, device="cpu", **options)(PAIRS)
