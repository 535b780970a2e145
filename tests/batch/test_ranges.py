"""Ranges of 8-bit vectors that a run measures itself: kept in the run, the same for what comes after and for Python."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

import xlmr_ray
from tests.tasks.texts import languages
from xlmr_ray import JobFailed, UserError, pipeline
from xlmr_ray.batch.cluster import Sizes
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.prepare import prepare_run
from xlmr_ray.batch.ranges import FEWEST, MOST, PLACES, known_ranges, sampled_shards, with_measured_ranges
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.store.open import open_store
from xlmr_ray.tasks.vector_precision import UNMEASURED

TEXTS = [text for articles in languages().values() for text in articles if text.strip()]
SIZE = Sizes(1, 1.0, 0.0, 1, 0.25, 1, 1)


def job(folder, **options):
    content = {
        "model": "embedded:mini",
        "input": {"path": str(folder / "in")},
        "tasks": [{"task": "embedding", "precision": "int8", **options}],
        "output": {"path": str(folder / "out")},
        "engine": {"device": "cpu"},
        "cluster": {"encoders": 1},
        "incremental": True,
    }
    return check_job(content, "job")


def write(folder, name, texts):
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "in" / name, row_group_size=16)


def rows_of(folder):
    """The published codes `(N, width)` by file and row."""
    table = pa.concat_tables(pq.read_table(path) for path in xlmr_ray.result_files(folder / "out"))
    return {(row["source"].rpartition("/")[2], row["row"]): row["embedding"] for row in table.to_pylist()}


def test_the_sample_is_of_whole_shards_from_everywhere():
    assert sampled_shards(3, 40) == [0, 1, 2]
    assert len(sampled_shards(1000, 16_000)) == FEWEST // 16
    assert len(sampled_shards(1_000_000, 16_000_000)) == MOST // 16
    places = sampled_shards(1000, 8_192_000)
    assert len(places) == PLACES
    assert (places[0], places[-1]) == (0, 999)


def test_a_run_measures_once_and_what_comes_after_has_the_same(tmp_path, steps_here):
    write(tmp_path, "a.parquet", TEXTS[:40])
    done = run_job(job(tmp_path), quiet=True)
    (file,) = (tmp_path / "out" / "_runs").glob("*/ranges/embedding.json")
    content = json.loads(file.read_text())
    floats = np.stack(pipeline("embedding", "embedded:mini", device="cpu")(TEXTS[:60]))
    assert content["vectors"] == 40
    ranges = np.array([content["min"], content["max"]], np.float32)
    assert np.abs(ranges - [floats[:40].min(0), floats[:40].max(0)]).max() < 1e-5
    expected = quantize_embeddings(floats, "int8", ranges=ranges)
    got = rows_of(tmp_path)
    # A number on the edge of a step may be rounded to either side, in a batch of another engine's.
    assert np.abs(np.stack([got["a.parquet", i] for i in range(40)]).astype(int) - expected[:40]).max() <= 1

    write(tmp_path, "b.parquet", TEXTS[40:60])
    assert floats[40:].min() < floats[:40].min() or (floats[40:].max(0) > floats[:40].max(0)).any()
    after = run_job(job(tmp_path), quiet=True)
    assert after.manifest.run_id != done.manifest.run_id
    files = sorted((tmp_path / "out" / "_runs").glob("*/ranges/embedding.json"))
    assert [one.read_text() for one in files] == [file.read_text()] * 2
    got = rows_of(tmp_path)
    mine = pipeline("embedding", "embedded:mini", device="cpu", precision="int8", ranges=tmp_path / "out")
    for i, codes in enumerate(np.stack(mine(TEXTS[:60]))):
        assert got["a.parquet" if i < 40 else "b.parquet", i % 40] == codes.tolist()

    for one in files:
        one.unlink()
    write(tmp_path, "c.parquet", TEXTS[60:64])
    with pytest.raises(JobFailed, match=r"ranges/embedding\.json: is missing: the published vectors are between"):
        run_job(job(tmp_path), quiet=True)


def test_a_resumed_run_has_the_ranges_that_are_there(tmp_path):
    write(tmp_path, "a.parquet", TEXTS[:20])
    prepared = prepare_run(job(tmp_path), open_store(str(tmp_path / "out")))
    assert known_ranges(prepared.recipe, None).tasks[0].options["ranges"] == UNMEASURED
    place = tmp_path / "out" / "_runs" / prepared.plan.run_id / "ranges"
    place.mkdir()
    content = {"min": [-1.0] * 128, "max": [1.0] * 128, "normalized": False, "vectors": 3}
    (place / "embedding.json").write_text(json.dumps(content))
    again = prepare_run(job(tmp_path), open_store(str(tmp_path / "out")))
    assert again.plan.run_id == prepared.plan.run_id
    known = known_ranges(again.recipe, None)
    assert known.tasks[0].options["ranges"] == ((-1.0,) * 128, (1.0,) * 128, False)
    assert with_measured_ranges(known, again.plan.shards, SIZE, pytest.fail) is known


def test_a_table_without_ranges_has_none_to_give(tmp_path):
    with pytest.raises(UserError, match=r"ranges: .*_current\.json cannot be read"):
        pipeline("embedding", "embedded:mini", device="cpu", precision="int8", ranges=str(tmp_path))
    with pytest.raises(UserError, match="precision int8 needs ranges"):
        pipeline("embedding", "embedded:mini", device="cpu", precision="int8")
