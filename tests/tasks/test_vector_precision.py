"""Vectors in 8 bits and in 1, against sentence-transformers' `quantize_embeddings`."""

import json

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from tests.tasks.texts import corpus
from xlmr_ray import UserError, pipeline
from xlmr_ray.cli import main
from xlmr_ray.tasks.vector_precision import write_ranges

TEXTS = corpus()


@pytest.fixture(scope="module")
def floats(plain_encoder):
    return np.stack(pipeline("embedding", plain_encoder, device="cpu", normalize=True)(TEXTS))


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_bytes_between_the_ranges_of_a_sample(plain_encoder, floats, tmp_path, precision):
    """Numbers outside of the sample's range, too: it is taken from a part of the texts."""
    path = tmp_path / "ranges.json"
    write_ranges(path, floats[:20], normalized=True)
    for ranges in (str(path), [floats[:20].min(0).tolist(), floats[:20].max(0).tolist(), True]):
        pipe = pipeline("embedding", plain_encoder, device="cpu", normalize=True, precision=precision, ranges=ranges)
        got = np.stack(pipe(TEXTS))
        expected = quantize_embeddings(floats, precision, ranges=np.stack([floats[:20].min(0), floats[:20].max(0)]))
        assert got.dtype == expected.dtype
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 21])
def test_bits(plain_encoder, floats, precision, dimensions):
    options = {"normalize": True, "precision": precision, "dimensions": dimensions}
    got = np.stack(pipeline("embedding", plain_encoder, device="cpu", **options)(TEXTS))
    expected = quantize_embeddings(floats[:, :dimensions], precision)
    assert got.dtype == expected.dtype
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, r"precision int8 needs ranges, .*xlmr-ray bench JOB\.yaml --ranges"),
        ({"precision": "int4"}, "precision 'int4' is none of float32, float16, int8, uint8, binary, ubinary"),
        ({"precision": "int8", "ranges": [[0.0], [1.0], False]}, "ranges: got 1 dimensions, expected 48"),
        ({"precision": "int8", "ranges": [[0.0] * 48, [1.0] * 48]}, "nothing says whether the vectors were normalized"),
        ({"precision": "int8", "ranges": [[1.0] * 48, [0.0] * 48, False]}, "a smallest number is above a largest"),
        ({"precision": "int8", "ranges": "no-such.json"}, r"ranges: no-such\.json cannot be read"),
        ({"precision": "int8", "ranges": 3}, "expected two lists of numbers and whether .* min, max, normalized"),
        (
            {"precision": "int8", "ranges": [[0.0] * 48, [1.0] * 48, False], "normalize": True},
            "ranges are of vectors not normalized, with normalize true they are of length 1",
        ),
        (
            {"precision": "uint8", "ranges": [[0.0] * 48, [1.0] * 48, True]},
            "ranges are of vectors of length 1, with normalize false they are not normalized",
        ),
    ],
)
def test_what_does_not_fit_is_refused(plain_encoder, options, message):
    with pytest.raises(UserError, match=message):
        pipeline("embedding", plain_encoder, device="cpu", **options)


def test_ranges_say_of_how_many_vectors_they_are(tmp_path, floats):
    write_ranges(tmp_path / "r.json", floats, normalized=True)
    assert json.loads((tmp_path / "r.json").read_text())["vectors"] == len(floats)


def test_ranges_of_a_jobs_sample_by_the_command(plain_encoder, tmp_path, capsys, monkeypatch):
    """Of a job that says int8 already, and has no ranges yet."""
    path, texts = tmp_path / "ranges.json", [text for text in TEXTS if text.strip()]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    call = ["bench", "embedding", "--model", str(plain_encoder), "--input", str(tmp_path / "in.jsonl")]
    call += ["--set", "tasks.0.precision=int8", "--ranges", str(path)]
    monkeypatch.setattr("sys.argv", ["xlmr-ray", *call])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert f"over {len(texts)} vectors that are not normalized" in capsys.readouterr().out
    vectors = np.stack(pipeline("embedding", plain_encoder, device="cpu")(texts))
    content = json.loads(path.read_text())
    assert (content["min"], content["max"]) == (vectors.min(0).tolist(), vectors.max(0).tolist())
    assert content["normalized"] is False
