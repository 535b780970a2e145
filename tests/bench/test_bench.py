"""`xlmr-ray bench`: what it counts, what it measures, and what it writes."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from sentence_transformers.util import semantic_search
from torch.utils.flop_counter import FlopCounterMode

from tests.models import save_classifier
from xlmr_ray import UserError, pipeline
from xlmr_ray.batch.job import job_of_call
from xlmr_ray.bench import quality
from xlmr_ray.bench.command import bench_command, quality_command
from xlmr_ray.bench.matrix_rate import matrix_rate
from xlmr_ray.bench.measure import dealt, measure
from xlmr_ray.bench.result import PipelineRun, read_bench
from xlmr_ray.bench.sample import take_sample
from xlmr_ray.bench.shares import NAMES, shares
from xlmr_ray.bench.show import chart_svg, print_bench
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.operations import attention_operations, matmul_operations
from xlmr_ray.tasks.registry import bind_task

MINI = "embedded:mini"
UDHR = "xlmr_ray/assets/udhr/part-0.parquet"


def job(task="embedding", model=MINI, **engine):
    settings = [f"engine.{key}={value}" for key, value in engine.items()]
    return job_of_call(task, input=[UDHR], model=model, settings=settings, writes=False)


@pytest.fixture(scope="module")
def bench():
    return measure(job(), most=20, rounds=2, encoders=2, say=lambda text: None)


def test_operations_are_those_that_torch_counts(tmp_path, monkeypatch):
    # The counter knows torch's own matmuls only.
    monkeypatch.setattr("xlmr_ray.engine.engine.use_onednn", lambda module, *, prepack: None)
    folder = save_classifier(tmp_path, num_labels=3, hidden_size=64, intermediate_size=160, num_hidden_layers=3)
    task = bind_task("feature-extraction", folder, {})
    # The counter does not know the fused kernel of the CPU.
    engine = Engine.load(folder, [task], EngineSettings(device="cpu", attn_implementation="eager"))
    lengths = np.array([48, 16, 32])  # whole steps of 16, so that no filler is computed
    ids = pa.array([list(range(3, 3 + n)) for n in lengths], pa.list_(pa.int32()))
    with FlopCounterMode(display=False) as counted:
        engine.run(ids)
    wanted = lengths.sum() * matmul_operations(engine.model.config) + attention_operations(engine.model.config, lengths)
    assert counted.get_total_flops() == wanted


def test_what_is_measured_hangs_together(bench):
    work = bench.work
    assert (work.documents, work.tasks, work.dtype, bench.encoding.workers) == (20, ("embedding",), "float32", 2)
    sample = take_sample(job(), 20)
    assert work.tokens == sum(len(ids) for ids in sample.encoded[0]["input_ids"].to_pylist())
    assert sum(bench.shares.values()) == pytest.approx(1)
    assert bench.shares["products"] > 0
    assert bench.shares["attention"] > 0
    assert bench.utilization > 0
    assert bench.encoding.tokens_per_second / bench.encoding.documents_per_second == pytest.approx(work.tokens / 20)
    assert 0 <= bench.padding < 1
    assert work.output_bytes > 20 * 4 * 32


def test_the_ceiling_is_the_matrix_rate(bench):
    machine = replace(bench.machine, matrix=2e9, matrix_products=2e9)
    assert replace(bench, machine=machine).ceiling == pytest.approx(2e9 * bench.work.tokens / bench.work.operations)
    faster = replace(bench, machine=replace(machine, matrix_products=4e9))
    assert bench.work.attention_operations < bench.work.operations
    assert replace(bench, machine=machine).ceiling < faster.ceiling < 2 * replace(bench, machine=machine).ceiling


def test_the_result_is_read_as_it_was_written(bench, tmp_path):
    for one in (
        bench,
        replace(
            bench,
            pipeline=PipelineRun(documents=20, seconds=9.0, first_commit_seconds=5.0, steady_tokens_per_second=100.0),
        ),
    ):
        (tmp_path / "bench.json").write_text(one.to_json(), "utf-8")
        assert read_bench(tmp_path / "bench.json") == one
    content = json.loads(bench.to_json())
    assert content["utilization"] == bench.utilization


def test_other_files_are_refused_in_one_line(bench, tmp_path):
    path = tmp_path / "bench.json"
    with pytest.raises(UserError, match=r"bench\.json: No such file"):
        read_bench(path)
    for text in ("{", "[]", "{}", json.dumps({"version": 1, "machine": {"host": "x"}})):
        path.write_text(text, "utf-8")
        with pytest.raises(UserError, match="not a result of `xlmr-ray bench`"):
            read_bench(path)
    path.write_text(bench.to_json().replace('"version": 1', '"version": 99'), "utf-8")
    with pytest.raises(UserError, match="format 99"):
        read_bench(path)


def test_the_table_and_the_picture_say_the_shares(bench, capsys):
    print_bench(bench, Console(width=120))
    text = capsys.readouterr().out
    for name in ("products", "attention", "rest"):
        assert f"{bench.shares[name]:.1%}" in text
        assert f"{bench.shares[name]:.1%}" in chart_svg(bench)
    ElementTree.fromstring(chart_svg(replace(bench, work=replace(bench.work, model="a<b&c"))))


def test_documents_are_dealt_out_whole_and_evenly():
    sample = take_sample(job(), 33)
    parts = dealt(sample, 3)
    sizes = [sum(len(ids) for ids in part[0]["input_ids"].to_pylist()) for part in parts]
    assert sum(sizes) == sample.lengths.sum()
    assert max(sizes) - min(sizes) <= sample.lengths.max()


def test_the_sample_is_spread_over_the_input(tmp_path):
    texts = [f"number {i}" if i % 5 else "" for i in range(640)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    one = job_of_call("embedding", input=[str(tmp_path / "in.parquet")], model=MINI, writes=False)
    numbers = [int(text.split()[1]) for text in take_sample(one, 64).columns["text"].to_pylist()]
    assert len(numbers) <= 64
    assert min(numbers) < 16
    assert max(numbers) > 600
    assert not any(n % 5 == 0 for n in numbers)  # an empty text is an error row of a run


def test_int8_is_measured_against_its_own_matrix_rate():
    one = measure(job(quantization="int8"), most=8, rounds=1, encoders=1, say=lambda text: None)
    assert one.machine.matrix_products != one.machine.matrix
    assert one.work.quantization == "int8"
    assert one.shares["quantizing"] > 0


def test_the_shares_of_a_lone_product():
    x = torch.randn(256, 256)
    assert shares(lambda: [torch.mm(x, x) for _ in range(5)], torch.device("cpu"))["products"] > 0.5
    assert tuple(shares(lambda: None, torch.device("cpu"))) == NAMES


def test_two_threads_have_two_rates():
    assert matrix_rate(torch.device("cpu"), torch.float32, 2) > 0


def test_the_command_writes_what_it_says(tmp_path, capsys):
    path, chart = tmp_path / "new" / "bench.json", tmp_path / "new" / "bench.svg"
    bench_command(
        job("text-classification"),
        documents=6,
        rounds=1,
        encoders=1,
        pipeline=False,
        output=path,
        chart=chart,
        console=Console(width=100),
        say=lambda text: None,
    )
    assert read_bench(path).work.tasks == ("text-classification",)
    assert chart.read_text("utf-8").startswith("<svg")
    assert str(path) in capsys.readouterr().out.replace("\n", "")


def test_quality_is_a_table_with_every_variant(capsys, monkeypatch):
    monkeypatch.setattr(quality, "LANGUAGES", ("de",))
    quality_command(job(), documents=6, console=Console(width=160), say=lambda text: None)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:11] if "%" in line and "int8, bf" not in line}
    assert rows["float32"] == ["0.00e+00", "0.00e+00", "100.00%", rows["float32"][3], "1.00"]
    assert "speed: over that of float32 on this CPU" in "\n".join(lines)
    assert float(rows["int8"][4]) > 0
    assert len(rows["fp8"]) == 4
    assert {"bfloat16", "float16", "int8"} <= set(rows)
    assert 0 < float(rows["float16"][1]) < float(rows["bfloat16"][1])
    assert 0 < float(rows["int8"][1]) < 0.1
    assert float(rows["bfloat16"][1]) < float(rows["fp8"][1])
    kinds = ("int8, uint8", "binary, ubinary", "64 dimensions", "32 dimensions", "64 in int8")
    small = {kind: line for line in lines for kind in kinds if line.startswith(kind)}
    assert small.keys() == set(kinds)
    assert all(line.count("%") == 8 for line in small.values())


def test_quality_of_articles_that_go_in_windows(monkeypatch):
    """The vectors are those of whole articles, as a job stores them."""
    monkeypatch.setattr(quality, "LANGUAGES", ("de",))
    monkeypatch.setattr(quality, "VARIANTS", quality.VARIANTS[:1])
    options = {"long": "windows", "max_length": 24, "dimensions": 96}
    settings = [f"tasks.0.{name}={value}" for name, value in options.items()]
    windows = job_of_call("embedding", input=[UDHR], model=MINI, settings=settings, writes=False)
    found = quality.quality(windows, most=6, say=lambda text: None)
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(quality.CORPUS.glob("*.parquet")))
    texts, numbers = {}, {}
    for lang in ("en", "de"):
        own = rows.filter(pc.equal(rows["lang"], lang))
        texts[lang], numbers[lang] = own["text"].to_pylist(), np.array(own["article"])
    pipe = pipeline("embedding", MINI, device="cpu", **options)
    nearest = semantic_search(np.stack(pipe(texts["de"])), np.stack(pipe(texts["en"])), top_k=1)
    same = numbers["en"][[hits[0]["corpus_id"] for hits in nearest]] == numbers["de"]
    assert 0 < same.mean() < 1
    assert found.costs[0].retrieval == same.mean()
    assert {loss.bytes for loss in found.losses} == {96, 12, 192, 48}


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("no-such", {}, "neither a job file nor a task"),
        ("embedding", {"input": None}, "nothing says the input"),
        ("embedding", {"settings": ["engine.quantization=int9"]}, "quantization"),
    ],
)
def test_calls_that_are_wrong(task, arguments, message):
    with pytest.raises(UserError, match=message):
        job_of_call(task, **{"input": [UDHR], "model": MINI, "writes": False, **arguments})


def test_tasks_that_have_no_fixed_cost():
    with pytest.raises(UserError, match="has no fixed cost a document"):
        take_sample(job("text-generation", f"{MINI}/heads/masked"), 4)
    with pytest.raises(UserError, match="whole numbers from 1 on"):
        measure(job(), most=0, rounds=1, encoders=1, say=lambda text: None)
