"""Weights in fewer bits in the engine: near the full ones, and a document's bits whatever its batch."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.models import save_classifier
from xlmr_ray import UserError
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.plan import task_recipes
from xlmr_ray.engine.engine import Engine, check_int8
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.linear import use_torch
from xlmr_ray.model.quantized.fp8 import Fp8Linear, eight_bit_floats
from xlmr_ray.model.quantized.int8 import LARGEST_CODES, check_exact
from xlmr_ray.tasks.registry import bind_task


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("model"), num_labels=3, hidden_size=128, intermediate_size=128)


def documents():
    generator = np.random.default_rng(3)
    return pa.array([generator.integers(5, 900, n).tolist() for n in (5, 60, 17, 33, 2)], pa.list_(pa.int32()))


@pytest.mark.parametrize(
    ("scheme", "dtype", "near"),
    [
        ("nf4", "auto", 0.4),
        ("fp4", "auto", 0.4),
        ("int8-weights", "auto", 0.03),
        ("int8", "auto", 0.05),
        ("int8", "bfloat16", 0.03),
    ],
)
def test_near_the_full_weights_and_alone_in_any_batch(checkpoint, scheme, dtype, near):
    if dtype == "bfloat16":
        try:
            check_exact(LARGEST_CODES[torch.bfloat16])
        except UserError:
            pytest.skip("this CPU has no dot product of bytes")
    if scheme != "int8":
        pytest.importorskip("bitsandbytes", reason="the extra quantization is not installed")
    tasks = [bind_task("text-classification", checkpoint, {}), bind_task("embedding", checkpoint, {})]
    full = Engine.load(checkpoint, tasks, EngineSettings(device="cpu")).run(documents()).raw[1]
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu", quantization=scheme, dtype=dtype))
    got = engine.run(documents()).raw
    away = np.linalg.norm(got[1] - full) / np.linalg.norm(full)
    assert 0 < away < near
    engine.max_tokens = 1
    for ours, alone in zip(got, engine.run(documents()).raw, strict=True):
        assert np.array_equal(ours, alone)


def test_words_that_it_does_not_know(checkpoint):
    with pytest.raises(UserError, match="quantization 'int3' is none of int8, fp8, nf4, fp4, int8-weights"):
        Engine.load(
            checkpoint, [bind_task("embedding", checkpoint, {})], EngineSettings(device="cpu", quantization="int3")
        )


def test_int8_replaces_the_encoders_products_alone(checkpoint):
    tasks = [bind_task("text-classification", checkpoint, {})]
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu", quantization="int8"))
    layers = [type(module).__name__ for module in engine.model.modules() if "Linear" in type(module).__name__]
    assert layers == ["Int8Linear"] * 4 * engine.model.config.num_hidden_layers
    assert {p.dtype for p in engine.heads[0].parameters()} == {torch.float32}


def test_int8_is_for_float32_or_bfloat16_on_a_cpu(checkpoint):
    task = bind_task("embedding", checkpoint, {})
    with pytest.raises(UserError, match="int8 computes in float32 or bfloat16"):
        Engine.load(checkpoint, [task], EngineSettings(device="cpu", quantization="int8", dtype="float16"))
    with pytest.raises(UserError, match="int8 is for CPUs, got device cuda"):
        check_int8(torch.device("cuda"), None)


def test_a_job_that_cannot_have_it(checkpoint, tmp_path):
    content = {
        "model": str(checkpoint),
        "input": {"path": str(tmp_path)},
        "tasks": [{"task": "text-generation", "max_new_tokens": 4}],
        "output": {"path": str(tmp_path / "out")},
        "engine": {"quantization": "nf4"},
    }
    with pytest.raises(UserError, match="task text-generation does not take it"):
        task_recipes(check_job(content, "test"))


def test_fp8_is_for_a_gpu(checkpoint):
    with pytest.raises(UserError, match="fp8 is for GPUs, got device cpu; on a CPU take int8"):
        Engine.load(
            checkpoint, [bind_task("embedding", checkpoint, {})], EngineSettings(device="cpu", quantization="fp8")
        )


def test_fp8_near_the_full_weights_and_alone_in_any_batch(checkpoint):
    """By torch's own product on the CPU, which has the same operands as the GPU's."""
    engine = Engine.load(checkpoint, [bind_task("embedding", checkpoint, {})], EngineSettings(device="cpu"))
    full = engine.run(documents()).raw[0]
    use_torch(engine.model.encoder)
    eight_bit_floats(engine.model.encoder)
    got = engine.run(documents()).raw[0]
    assert 0 < np.linalg.norm(got - full) / np.linalg.norm(full) < 0.2
    engine.max_tokens = 1
    assert np.array_equal(engine.run(documents()).raw[0], got)


@pytest.mark.parametrize("bias", [True, False])
def test_fp8_products(bias):
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(64, 48, bias=bias).requires_grad_(False)
    x = torch.randn(32, 64, generator=generator)
    x[3] = 0
    scales = [rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 448 for rows in (x, layer.weight)]
    a, b = (
        (rows / scale).to(torch.float8_e4m3fn).float() * scale
        for rows, scale in zip((x, layer.weight), scales, strict=True)
    )
    torch.testing.assert_close(Fp8Linear(layer)(x), torch.nn.functional.linear(a, b, layer.bias), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="got a layer of 30 x 48, expected multiples of 16"):
        Fp8Linear(torch.nn.Linear(30, 48))


def test_compiled_layers_are_compiled_once_for_all_batches(checkpoint):
    tasks = [bind_task("text-classification", checkpoint, {}), bind_task("embedding", checkpoint, {"pooling": "cls"})]
    wanted = Engine.load(checkpoint, tasks, EngineSettings(device="cpu")).run(documents()).raw
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu"))
    use_torch(engine.model.encoder)  # as on a GPU
    engine.model.encoder.compile_layers()
    engine.warm_up()
    counts = []
    for budget in (1024, 128, 80):
        engine.max_tokens = budget
        for got, plain in zip(engine.run(documents()).raw, wanted, strict=True):
            np.testing.assert_allclose(got, plain, atol=1e-5)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[-1] > 0


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_nothing_is_compiled_on_a_cpu_where_it_is_slower(checkpoint, quantization, caplog):
    tasks = [bind_task("embedding", checkpoint, {})]
    plain = (
        Engine.load(checkpoint, tasks, EngineSettings(device="cpu", quantization=quantization)).run(documents()).raw[0]
    )
    assert not caplog.records
    engine = Engine.load(checkpoint, tasks, EngineSettings(device="cpu", quantization=quantization, compile=True))
    assert [record.getMessage() for record in caplog.records] == [
        "compile: left out on a CPU: compiled layers take torch's matmuls there, and are slower"
    ]
    assert np.array_equal(engine.run(documents()).raw[0], plain)
