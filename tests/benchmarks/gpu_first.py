"""The steps of gpu_first.sh: python -m tests.benchmarks.gpu_first STEP [--small]"""

import argparse
import copy
import importlib.metadata
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from tests.benchmarks.gpu import lengths, shape
from xlmr_ray import XLMRobertaConfig, XLMRobertaTokenizer
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.parts import BatchPart
from xlmr_ray.errors import UserError
from xlmr_ray.model.attention.backends import attention as attention_back_end
from xlmr_ray.model.attention.flash import PACKAGES
from xlmr_ray.model.packed_batch import pack
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.registry import TASKS

# Each with its options, and whether the model is a decoder.
HEADS: tuple[tuple[str, Mapping[str, object], bool], ...] = (
    ("embedding", {"pooling": "mean"}, False),
    ("embedding", {"pooling": "cls"}, False),
    ("text-classification", {}, False),
    ("token-classification", {}, False),
    ("question-answering", {}, False),
    ("pseudo-perplexity", {}, False),
    ("multiple-choice", {}, False),
    ("feature-extraction", {}, False),
    ("perplexity", {}, True),
)
LENGTHS = (300, 200, 64, 17, 5, 1)


def sequences(sizes: np.ndarray, config: XLMRobertaConfig) -> pa.ListArray:
    """Random ids, `list<int32>`, without special ones."""
    generator = np.random.default_rng(3)
    return pa.array([generator.integers(4, config.vocab_size, n).tolist() for n in sizes], pa.list_(pa.int32()))


class Model:
    """An encoder with one task's head in float64 on the CPU, of which engines of other kinds are copies."""

    def __init__(self, config: XLMRobertaConfig, task: str, options: Mapping[str, object], decoder: bool) -> None:
        self.config = XLMRobertaConfig.from_dict({**config.to_dict(), "is_decoder": decoder})
        self.task = TASKS[task].bind(Path("/nonexistent"), self.config, dict(options))
        torch.manual_seed(0)
        self.encoder = XLMRobertaModel(self.config, add_pooling_layer=False).double().eval()
        self.head = self.task.head().to_empty(device="cpu").double().eval()
        for name, one in self.head.named_parameters():
            nn.init.normal_(one, 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, 0.05)

    def engine(
        self,
        device: torch.device,
        dtype: torch.dtype,
        *,
        attention: str = "auto",
        fp8: bool = False,
        budget: int = 4096,
    ) -> Engine:
        encoder, head = copy.deepcopy((self.encoder, self.head))
        for module in encoder.modules():
            if hasattr(module, "attend"):
                module.attend = attention_back_end(attention)
        encoder, head = encoder.to(device, dtype).requires_grad_(False), head.to(device, dtype).requires_grad_(False)
        encoder.encoder.fuse()
        if fp8:
            eight_bit_floats(encoder.encoder)
        return Engine(encoder, [self.task], [head], device, budget)

    def results(self, engine: Engine) -> np.ndarray:
        ids = sequences(np.array(LENGTHS), self.config)
        targets = pa.array([[7] * n for n in LENGTHS], pa.list_(pa.int32()))
        return engine.run(ids, targets).raw[0]


def versions(device: torch.device, config: XLMRobertaConfig) -> None:
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        memory = torch.cuda.get_device_properties(device).total_memory
        print(f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}, {memory / 2**30:.0f} GiB")
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        print("driver, clock, power:", subprocess.run(query, capture_output=True, text=True).stdout.strip())
    for name in ("triton", "flash-attn", "fa3-fwd", "flash-attn-4", "bitsandbytes", "transformers", "pyarrow", "ray"):
        try:
            print(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: not there")
    print("C compiler:", shutil.which("gcc") or shutil.which("cc") or "none, so that Triton cannot run")


def answers(device: torch.device, config: XLMRobertaConfig) -> None:
    """Every task's results by every back end in half precision, against float64 on the CPU."""
    back_ends = ["eager", "sdpa"] if device.type == "cpu" else ["sdpa", "varlen", *PACKAGES]
    dtypes = [torch.float32, torch.bfloat16] + ([torch.float16] if device.type == "cuda" else [])
    for task, options, decoder in HEADS:
        model = Model(config, task, options, decoder)
        exact = model.results(model.engine(torch.device("cpu"), torch.float64, attention="sdpa"))
        size = np.abs(exact).mean()
        found = []
        for attention in back_ends:
            for dtype in dtypes:
                if dtype is torch.float32 and attention not in ("eager", "sdpa"):
                    continue
                name = f"{attention} {str(dtype).removeprefix('torch.')}"
                try:
                    got = model.results(model.engine(device, dtype, attention=attention))
                    found.append(f"{name} {np.abs(got - exact).max() / size:.1e}")
                except (UserError, RuntimeError) as error:
                    found.append(f"{name}: {str(error).splitlines()[0][:80]}")
        print(f"{task} {dict(options)}: largest difference over mean size: {'; '.join(found)}", flush=True)


def waits(device: torch.device, config: XLMRobertaConfig) -> None:
    """A forward pass of each task that raises where it waits for the device."""
    for task, options, decoder in (*HEADS, ("fill-mask", {}, False)):
        model = Model(config, task, options, decoder)
        engine = model.engine(device, torch.bfloat16)
        splits = np.concatenate([[0], np.cumsum(LENGTHS)])
        ids = np.arange(splits[-1], dtype=np.int32) % 900 + 4
        batch = pack(ids, splits, np.arange(len(LENGTHS)), model.config, targets=np.full(splits[-1], 7, np.int32))
        parts = [BatchPart(model.task, 0, 0, len(LENGTHS))]
        engine.compute(batch, parts)
        try:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            engine.compute(batch, parts)
            print(f"{task} {dict(options)}: does not wait", flush=True)
        except RuntimeError as error:
            print(f"{task} {dict(options)}: WAITS: {str(error).splitlines()[0]}", flush=True)
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def compiled(device: torch.device, config: XLMRobertaConfig) -> None:
    model = Model(config, "embedding", {"pooling": "mean"}, False)
    dtype = torch.bfloat16
    eager = model.results(model.engine(device, dtype))

    def cosine(got: np.ndarray) -> float:
        return float(((got * eager).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(eager, axis=1)).min())

    engine = model.engine(device, dtype)
    engine.model.encoder.compile_layers()
    start = time.perf_counter()
    got = model.results(engine)
    print(f"compiled: smallest cosine to eager {cosine(got):.6f}; first call {time.perf_counter() - start:.1f} s")
    try:
        print(f"fp8: smallest cosine to eager {cosine(model.results(model.engine(device, dtype, fp8=True))):.6f}")
    except (UserError, RuntimeError) as error:
        print(f"fp8: {str(error).splitlines()[0]}")


def memory(device: torch.device, config: XLMRobertaConfig) -> None:
    """Less memory than the first batch takes: the answers must be those of small batches."""
    model = Model(config, "embedding", {"pooling": "mean"}, False)
    ids = sequences(lengths(None, 512 if device.type == "cuda" else 32), model.config)
    exact = model.engine(device, torch.bfloat16, budget=1024).run(ids)
    engine = model.engine(device, torch.bfloat16, budget=1 << 20)
    real = Engine.compute

    def starved(self: Engine, batch, parts):  # a CPU has no such limit
        if batch.tokens > 3000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch, parts)

    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + (256 << 20)) / total)
        got = engine.run(ids)
    else:
        with mock.patch.object(Engine, "compute", starved):
            got = engine.run(ids)
    away = np.abs(got.raw[0] - exact.raw[0]).max()
    print(f"budget {1 << 20} became {engine.max_tokens}; failed {len(got.failed)}; differs by {away:.1e} at most")


def kernels(device: torch.device, config: XLMRobertaConfig) -> None:
    from torch.profiler import ProfilerActivity, profile

    model = Model(config, "embedding", {"pooling": "mean"}, False)
    engine = model.engine(device, torch.bfloat16, budget=16384)
    ids = sequences(lengths(None, 256), model.config)
    engine.run(ids)
    on_gpu = device.type == "cuda"
    before = engine.stats.batches
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        engine.run(ids)
        wall = time.perf_counter() - start
    batches = engine.stats.batches - before
    rows = profiled.key_averages()
    took = sum(row.self_device_time_total if on_gpu else row.self_cpu_time_total for row in rows) / 1e6
    count = sum(row.count for row in rows)
    each = count / batches / config.num_hidden_layers
    print(f"{batches} batches, {wall * 1e3:.1f} ms; busy {took / wall:.0%}; {each:.1f} kernels a layer and batch")
    for row in sorted(rows, key=lambda r: -(r.self_device_time_total if on_gpu else r.self_cpu_time_total))[:12]:
        time_ = row.self_device_time_total if on_gpu else row.self_cpu_time_total
        print(f"  {time_ / 1e6 / took:6.1%} {row.count:6d}  {row.key[:90]}")


def shard(device: torch.device, config: XLMRobertaConfig) -> None:
    """A shard's way through the encoder actor, with entities: the pass, and what Python does after it."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(resolve("embedded:mini"))
    labels = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]
    values = {**config.to_dict(), "vocab_size": len(tokenizer), "id2label": dict(enumerate(labels))}
    values["label2id"] = {label: i for i, label in enumerate(labels)}
    model = Model(XLMRobertaConfig.from_dict(values), "token-classification", {"aggregation_strategy": "simple"}, False)
    documents = 8192 if device.type == "cuda" else 128
    words = ["all", "human", "beings", "are", "born", "free", "and", "equal", "in", "dignity", "Geneva", "Ada"]
    generator = np.random.default_rng(4)
    sizes = lengths(None, documents) * 2 // 3
    texts = [" ".join(generator.choice(words, n)) for n in sizes]
    encoded = model.task.prepare(pa.table({"text": texts}), tokenizer)
    engine = model.engine(device, torch.bfloat16, budget=16384)
    engine.run(encoded["input_ids"].slice(0, 64))
    start = time.perf_counter()
    (found,) = engine.results([encoded])
    middle = time.perf_counter()
    table = model.task.postprocess(found.raw, encoded)
    end = time.perf_counter()
    entities = sum(map(len, table["entities"].to_pylist()))
    print(
        f"{documents} documents, {entities:,} entities: the pass {middle - start:.2f} s, after it {end - middle:.2f} s"
    )


STEPS: dict[str, Callable[[torch.device, XLMRobertaConfig], None]] = {
    one.__name__: one for one in (versions, answers, waits, compiled, memory, kernels, shard)
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = torch.device("cpu" if arguments.small else "cuda")
    STEPS[arguments.step](device, shape("small" if arguments.small else "base"))


if __name__ == "__main__":
    main()
