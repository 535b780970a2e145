"""`xlmr-ray plan`: the arithmetic from rates to time and money, and what it counts."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.batch.runs import create_plan
from xlmr_ray import UserError
from xlmr_ray.batch.ledger.commit import commit_shard
from xlmr_ray.batch.ledger.record import ERROR_SCHEMA, new_attempt, record_key
from xlmr_ray.batch.store.local import LocalStore
from xlmr_ray.bench.result import Bench, Machine, PipelineRun, Rate, Work
from xlmr_ray.bench.sizing.command import SHAPES, plan_command, size
from xlmr_ray.bench.sizing.estimate import DRIVER_SHARDS, RECORD_BYTES, Amount, estimate
from xlmr_ray.bench.sizing.hardware import HARDWARE, hardware
from xlmr_ray.bench.sizing.rates import PIPELINE_SHARE, START_SECONDS, UTILIZATION, Rates, estimated, measured_rates

RATES = Rates(
    tokens_per_second=1000.0,
    start_seconds=10.0,
    tokens_per_document=100.0,
    tokenizing_per_core=50_000.0,
    output_bytes=1000.0,
    cores=8,
    on_gpu=False,
    estimated=False,
    sources=("a test",),
)
BENCH = Bench(
    machine=Machine(
        host="h", device="d", on_gpu=False, cpus=2, memory_bytes=1, torch="2", matrix=1e11, matrix_products=1e11
    ),
    work=Work(
        model="m",
        tasks=("embedding",),
        dtype="float32",
        quantization=None,
        attn_implementation="auto",
        max_tokens=1024,
        documents=10,
        sequences=10,
        tokens=3000,
        longest=512,
        operations=1e12,
        attention_operations=1e11,
        output_bytes=20_000,
    ),
    load_seconds=1.0,
    tokenizing=Rate(workers=1, documents_per_second=500.0, tokens_per_second=150_000.0, spread=1.1),
    encoding=Rate(workers=2, documents_per_second=10.0, tokens_per_second=3000.0, spread=1.1),
    padding=0.0,
    shares={"products": 0.7, "attention": 0.2, "quantizing": 0.0, "rest": 0.1},
)


def amount(documents=6000.0):
    return Amount(documents=documents, tokens=100 * documents, shard_rows=16)


def test_one_machine():
    found = estimate(RATES, amount(), machines=None, hours=None, price=3.6)
    assert found.machines == 1
    assert found.seconds == 10 + 600
    assert found.cost == pytest.approx(0.61)
    assert found.shards == 375
    assert found.requests == 375 * 4 + 6
    assert found.request_cost == pytest.approx((375 * 2 + 4) * 0.005 / 1000 + (375 * 2 + 2) * 0.0004 / 1000)
    assert found.output_bytes == 6000 * 1000 + 375 * RECORD_BYTES


def test_more_machines_than_one_driver_feeds():
    """Which is said, and with larger shards is no more."""
    many = replace(amount(1e7), shard_rows=16)
    found = estimate(RATES, many, machines=10_000, hours=None, price=None)
    assert found.driver == 1
    assert found.seconds == pytest.approx(10 + 1e7 / 16 / DRIVER_SHARDS)
    found = estimate(RATES, replace(many, shard_rows=16_000), machines=10_000, hours=None, price=None)
    assert found.driver < 1
    assert found.seconds < 10 + 2 * 1e9 / 1000 / 10_000 + 1e7 / 16_000


@given(st.floats(0.02, 100), st.floats(1, 1e9))
def test_as_many_machines_as_the_hours_want_and_no_more(hours, documents):
    found = estimate(RATES, replace(amount(documents), shard_rows=10**6), machines=None, hours=hours, price=None)
    tail = found.seconds - 10 - amount(documents).tokens / (1000.0 * found.machines)
    assert found.seconds - tail <= hours * 3600 * (1 + 1e-9)
    if found.machines > 1:
        assert 10 + amount(documents).tokens / (1000.0 * (found.machines - 1)) > hours * 3600 * (1 - 1e-9)


def test_more_machines_cost_no_less_and_take_no_longer():
    found = [estimate(RATES, amount(), machines=n, hours=None, price=1.0) for n in (1, 2, 8, 64)]
    assert [one.seconds for one in found] == sorted((one.seconds for one in found), reverse=True)
    assert [one.cost for one in found] == sorted(one.cost for one in found)


def test_what_is_known_is_read_and_not_computed():
    found = estimate(RATES, replace(amount(), known=0.25), machines=None, hours=None, price=None)
    assert found.seconds == 10 + 450
    assert (found.shards, found.output_bytes) == (375, 6000 * 1000 + 375 * RECORD_BYTES)
    assert found.tokenizer_cores == pytest.approx(0.02 / 0.75)
    with pytest.raises(UserError, match="known: got 1, expected a share"):
        estimate(RATES, replace(amount(), known=1.0), machines=None, hours=None, price=None)


def test_a_gpu_whose_cores_cannot_feed_it_is_slowed_and_told():
    slow = replace(RATES, on_gpu=True, tokens_per_second=1_000_000.0)  # wants 20 cores of tokenizers
    found = estimate(slow, replace(amount(), shard_rows=600), machines=1, hours=None, price=None)
    assert found.tokenizer_cores == pytest.approx(20)
    assert found.short == pytest.approx(14)
    assert found.tokens_per_second == pytest.approx(6 * 50_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"machines": 0}, "machines: got 0, expected a whole number"),
        ({"machines": 2, "hours": 1.0}, "not both"),
        ({"hours": 0.001}, "less than a start takes"),
        ({"price": -1.0}, "price: got -1.0"),
    ],
)
def test_what_makes_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        estimate(RATES, amount(), **{"machines": None, "hours": None, "price": None, **arguments})


def test_a_measured_run_counts_more_than_the_engine():
    alone = measured_rates(BENCH)
    assert alone.tokens_per_second == PIPELINE_SHARE * 3000
    assert alone.start_seconds == START_SECONDS
    assert alone.estimated
    run = PipelineRun(documents=10, seconds=9.0, first_commit_seconds=8.5, steady_tokens_per_second=2900.0)
    with_run = measured_rates(replace(BENCH, pipeline=run))
    assert with_run.tokens_per_second == 2900
    assert with_run.start_seconds == pytest.approx(9 - 3000 / 2900)
    assert not with_run.estimated
    # The run itself comes out again.
    again = estimate(with_run, Amount(documents=10, tokens=3000, shard_rows=16), machines=None, hours=None, price=None)
    assert again.seconds == pytest.approx(9.0)


def test_estimates_say_that_they_are():
    rates = estimated(hardware("H100"), SHAPES["base"], 512.0, vectors=True)
    assert rates.estimated
    # The ceiling of an H100 at 512 tokens is about 4.2 million tokens a second.
    assert rates.tokens_per_second / UTILIZATION / PIPELINE_SHARE == pytest.approx(4.2e6, rel=0.1)
    large = estimated(hardware("h100"), SHAPES["large"], 512.0, vectors=True)
    assert large.tokens_per_second / UTILIZATION / PIPELINE_SHARE == pytest.approx(1.25e6, rel=0.1)
    assert any("estimated" in line for line in rates.sources)
    assert all(one.source for one in HARDWARE)
    with pytest.raises(UserError, match="is none of h100"):
        hardware("abacus")


def test_bytes_of_a_record_are_those_that_a_commit_makes(tmp_path):
    """Its requests are counted in `tests/batch/ledger/test_many.py`."""
    store = LocalStore(str(tmp_path / "out"))
    create_plan(store, "run", {"shards": []})
    rows = pa.table({"source": ["a"], "row": [0], "label": ["x"]})
    commit_shard(
        store,
        "run",
        "0-0",
        attempt=new_attempt(),
        rows=rows,
        errors=ERROR_SCHEMA.empty_table(),
        rows_in=1,
        source_key="a",
        source_etag="e",
    )
    assert store.head(record_key("run", "0-0")).size < RECORD_BYTES


def call(**arguments):
    names = (
        *("bench", "on", "model", "documents", "tokens", "tokens_per_document", "machines", "hours", "price"),
        "shard_rows",
    )
    plain = {**dict.fromkeys(names), "known": 0.0, "vectors": False, "as_json": False}
    plan_command(**{**plain, **arguments}, console=Console(width=160, soft_wrap=True))


def test_the_command(tmp_path, capsys):
    path = tmp_path / "bench.json"
    path.write_text(BENCH.to_json(), "utf-8")
    call(bench=path, documents=27_000.0, price=2.0)
    text = capsys.readouterr().out
    assert "27,000 documents, 8,100,000 tokens" in text
    assert "50 min 20 s" in text
    assert "estimated at 90%" in text
    call(bench=path, tokens=8_100_000.0, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["documents"] == 27_000
    assert content["shards"] == math.ceil(27_000 / content["shard_rows"])
    rates = measured_rates(BENCH)
    assert content["shard_rows"] == int(60 * rates.tokens_per_second / rates.cores / 300)  # a core's minute
    call(on="h100", documents=1e9, tokens_per_document=300.0, model="large", vectors=True)
    assert "798 TFLOP/s" in capsys.readouterr().out
    call(bench=path, documents=27_000.0, known=0.5)
    text = capsys.readouterr().out
    assert "50%" in text
    assert "25 min 20 s" in text
    call(on="h100", documents=1e9, tokens_per_document=100.0, model="base", machines=400)
    assert "one driver commits about 30 shards a second, which is the limit then" in capsys.readouterr().out
    call(on="l4", model="embedded:mini", documents=1e6, tokens=3e8)
    assert "300,000,000 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": 5.0}, "give --bench FILE"),
        ({"on": "h100", "tokens": 5.0}, "give --tokens-per-document"),
        ({"on": "h100"}, "give --documents or --tokens"),
        ({"on": "h100", "documents": 0.0, "tokens_per_document": 1.0}, "nothing to score"),
        ({"on": "abacus", "documents": 1.0, "tokens_per_document": 1.0}, "abacus"),
    ],
)
def test_calls_that_say_too_little_or_too_much(arguments, message):
    with pytest.raises(UserError, match=message):
        call(**arguments)


def test_sizes():
    assert [size(x) for x in (12, 3_500_000, 3.1e12, 4e16)] == ["12 bytes", "3.5 MB", "3.1 TB", "40,000.0 TB"]
