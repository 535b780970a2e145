"""The engine alone against what else computes the same vectors on a CPU: one process, the same documents in turn,
from texts to vectors, on all cores; answers are checked before anything is timed.

Runs in .venv-peers (`make bench-peers`), which adds ONNX Runtime and OpenVINO to the package's own environment. Prints
documents a second and, round by round, how many times as fast the engine is in the same precision: the machine's own
speed is not the point. bfloat16 is run where the CPU has instructions for it.
usage: python -m tests.benchmarks.peers [--model FOLDER] [--input FILE.parquet] [--documents N] [--rounds N]
    [--precisions float32,bfloat16,int8]
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import onnxruntime
import openvino
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from xlmr_ray.bench.measure import usable_cpus
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.demo import CORPUS
from xlmr_ray.engine.cpu_precision import BFLOAT16
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.model.kernels.library import cpu_capabilities
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

CORES = usable_cpus()
LENGTH = 512
# Padded tokens of a batch of sorted documents: 2,048 was the best of 1,024 to 16,384 for transformers on two cores.
BUDGET = 2048
Embed = Callable[[Sequence[str]], np.ndarray]
# What the names of those that round end in.
BF16, INT8 = " bfloat16", " int8"
# The smallest cosine of a vector with the engine's in float32 that is taken for the same model in that precision.
LEAST = {"": 1 - 1e-6, BF16: 0.99, INT8: 0.9}
SHOWN = 32  # documents that a static int8 model is calibrated on


def engine(folder: Path, *, dtype: str = "auto", quantization: str | None = None) -> Embed:
    """An encoder a core, as a run has them."""
    task = bind_task("embedding", folder, {"pooling": "mean", "normalize": True, "max_length": LENGTH})
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    engines = [
        Engine.load(folder, [task], EngineSettings(device="cpu", dtype=dtype, quantization=quantization))
        for _ in range(CORES)
    ]

    def one(engine: Engine, ids: pa.Array) -> np.ndarray:
        torch.set_num_threads(1)
        return engine.run(ids).raw[0]

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = task.prepare(pa.table({"text": texts}), tokenizer)["input_ids"].combine_chunks()
        order = np.argsort([-len(x) for x in ids], kind="stable")
        parts = [order[place::CORES] for place in range(CORES)]
        out = np.empty((len(texts), engines[0].shapes[0][0]), np.float32)
        with ThreadPoolExecutor(CORES) as pool:
            for part, raw in zip(parts, pool.map(one, engines, [ids.take(pa.array(p)) for p in parts]), strict=True):
                out[part] = raw
        return out

    return embed


def pooled(hidden: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    weights = mask[..., None].float()
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1).numpy()


def batches(lengths: Sequence[int], *, sort: bool) -> list[list[int]]:
    """32 in arrival order; or sorted by length, as many as fit in the budget with their padding."""
    if not sort:
        return [list(range(i, min(i + 32, len(lengths)))) for i in range(0, len(lengths), 32)]
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if out and lengths[out[-1][0]] * (len(out[-1]) + 1) <= BUDGET:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def padded(folder: Path, hidden: Callable[[dict[str, torch.Tensor]], torch.Tensor], *, sort: bool) -> Embed:
    """Padded batches through `hidden`, which gives the last hidden states."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def embed(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer(list(texts), truncation=True, max_length=LENGTH)["input_ids"]
        out: list[np.ndarray | None] = [None] * len(texts)
        for chosen in batches([len(x) for x in ids], sort=sort):
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, return_tensors="pt")
            inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
            for place, vector in zip(chosen, pooled(hidden(inputs).float(), inputs["attention_mask"]), strict=True):
                out[place] = vector
        return np.stack(out)

    return embed


def reference(
    folder: Path, *, dtype: torch.dtype = torch.float32, eight_bits: bool = False
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    model = transformers.XLMRobertaModel.from_pretrained(folder, dtype=dtype, add_pooling_layer=False).eval()
    if eight_bits:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    return lambda inputs: model(**inputs).last_hidden_state


def sentences(folder: Path, dtype: torch.dtype = torch.float32) -> Embed:
    body = modules.Transformer(str(folder))
    pooling = modules.Pooling(body.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[body, pooling, modules.Normalize()], device="cpu")
    model.max_seq_length = LENGTH
    model.to(dtype)
    return lambda texts: np.asarray(model.encode(list(texts), batch_size=32, show_progress_bar=False), np.float32)


class Hidden(torch.nn.Module):
    """The reference's encoder, for the exporter: ids and mask to the last hidden states."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        arguments = {"dtype": torch.float32, "add_pooling_layer": False, "attn_implementation": "eager"}
        self.model = transformers.XLMRobertaModel.from_pretrained(folder, **arguments).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(folder: Path, work: Path) -> tuple[Path, Path]:
    """The encoder as ONNX, with ONNX Runtime's own fusions where these take it, and that in dynamic int8."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    model = Hidden(folder)
    plain, fused, eight = work / "plain.onnx", work / "fused.onnx", work / "int8.onnx"
    ids = torch.tensor([[0, 6, 7, 8, 2], [0, 9, 2, 1, 1]])
    axes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
    torch.onnx.export(
        model,
        (ids, (ids != 1).long()),
        str(plain),
        input_names=list(axes),
        output_names=["hidden"],
        dynamic_axes={**axes, "hidden": {0: "batch", 1: "length"}},
        opset_version=17,
        dynamo=False,
    )
    config = model.model.config
    optimized = optimize_model(
        str(plain), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    )
    print("ONNX Runtime fused:", optimized.get_fused_operator_statistics(), flush=True)
    optimized.save_model_to_file(str(fused))
    quantize_dynamic(
        str(fused),
        str(eight),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # without it, sums overflow on CPUs that have no dot product of bytes
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    return fused, eight


def onnx(path: Path) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs[name].numpy() for name in names})[0])


def for_openvino(folder: Path) -> openvino.Model:
    ids = torch.tensor([[0, 6, 7, 8, 2], [0, 9, 2, 1, 1]])
    inputs = [(name, [-1, -1], openvino.Type.i64) for name in ("input_ids", "attention_mask")]
    return openvino.convert_model(Hidden(folder), example_input=(ids, (ids != 1).long()), input=inputs)


def compiled(
    model: openvino.Model, precision: str, **options: str
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    """By OpenVINO for all cores, computing in `precision` between what the model itself has in eight bits."""
    asked = {"INFERENCE_NUM_THREADS": CORES, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision, **options}
    request = openvino.Core().compile_model(model, "CPU", asked).create_infer_request()

    def hidden(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        request.infer([inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()])
        return torch.from_numpy(request.get_output_tensor(0).data)

    return hidden


def eight_bit_openvino(folder: Path, texts: Sequence[str]) -> dict[str, openvino.Model]:
    """In int8: weights only, activations as they come; and both, by ranges measured on some of the texts."""
    import nncf

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def inputs(text: str) -> dict[str, np.ndarray]:
        encoded = tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="np")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    sample = nncf.Dataset(list(texts[:: max(1, len(texts) // SHOWN)]), inputs)
    return {
        "dynamic": nncf.compress_weights(for_openvino(folder), mode=nncf.CompressWeightsMode.INT8_SYM),
        "static": nncf.quantize(for_openvino(folder), sample, model_type=nncf.ModelType.TRANSFORMER),
    }


def contenders(folder: Path, work: Path, texts: Sequence[str], asked: Sequence[str]) -> dict[str, Embed]:
    """By name, ours in a precision first."""
    sort = functools.partial(padded, folder, sort=True)
    found: dict[str, Embed] = {"xlmr_ray": engine(folder)}
    exported = export(folder, work) if {"float32", "int8"} & set(asked) else None
    if "float32" in asked and exported:
        found |= {
            "transformers, 32 as they come": padded(folder, reference(folder), sort=False),
            "transformers, sorted": sort(reference(folder)),
            "sentence-transformers": sentences(folder),
            "onnxruntime, sorted": sort(onnx(exported[0])),
            "openvino, sorted": sort(compiled(for_openvino(folder), "f32")),
        }
    if "bfloat16" in asked:
        found |= {
            "xlmr_ray" + BF16: engine(folder, dtype="bfloat16"),
            "transformers, sorted," + BF16: sort(reference(folder, dtype=torch.bfloat16)),
            "sentence-transformers," + BF16: sentences(folder, torch.bfloat16),
            "openvino, sorted," + BF16: sort(compiled(for_openvino(folder), "bf16")),
        }
    if "int8" in asked and exported:
        between = "bf16" if "bfloat16" in asked else "f32"
        eight = eight_bit_openvino(folder, texts)
        group = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(transformers.AutoConfig.from_pretrained(folder).hidden_size)}
        found |= {
            "xlmr_ray" + INT8: engine(folder, dtype="bfloat16" if between == "bf16" else "auto", quantization="int8"),
            "transformers, sorted," + INT8: sort(reference(folder, eight_bits=True)),
            "onnxruntime, sorted," + INT8: sort(onnx(exported[1])),
            f"openvino, sorted, {between} between," + INT8: sort(compiled(eight["dynamic"], between, **group)),
            f"openvino, sorted, {between} between, static" + INT8: sort(compiled(eight["static"], between)),
        }
    return found


def ending(name: str) -> str:
    return next((one for one in (BF16, INT8) if name.endswith(one)), "")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="embedded:mini", help="default: the embedded checkpoint")
    parser.add_argument("--input", help="Parquet with text; default: the embedded corpus")
    parser.add_argument("--documents", type=int, default=96, help="spread over the input")
    parser.add_argument("--rounds", type=int, default=3)
    fast = any(cpu_capabilities().get(name) for name in BFLOAT16)
    parser.add_argument("--precisions", default="float32,bfloat16,int8" if fast else "float32,int8")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    paths = [arguments.input] if arguments.input else sorted(CORPUS.glob("*.parquet"))
    texts = pa.concat_tables(pq.read_table(path, columns=["text"]) for path in paths)["text"].to_pylist()
    texts = [texts[i] for i in np.linspace(0, len(texts) - 1, min(arguments.documents, len(texts))).astype(int)]
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        runs = contenders(resolve(arguments.model), Path(work), texts, arguments.precisions.split(","))
        wanted = runs["xlmr_ray"](texts)
        for name, embed in runs.items():
            torch.set_num_threads(CORES)
            got = embed(texts)
            cosine, away = float((got * wanted).sum(1).min()), float(np.abs(got - wanted).max())
            print(f"{name:48} smallest cosine {cosine:.6f}, largest difference {away:.1e}", flush=True)
            assert cosine > LEAST[ending(name)], name
        for turn in range(arguments.rounds):
            # Forwards and backwards, so that none is always after the same one.
            for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
                torch.set_num_threads(CORES)
                start = time.perf_counter()
                runs[name](texts)
                rates.setdefault(name, []).append(len(texts) / (time.perf_counter() - start))
                print(f"round {turn}: {name:48} {rates[name][-1]:.2f} docs/s", flush=True)
    print(f"{len(texts)} documents, {CORES} cores, {arguments.rounds} rounds: median (smallest to largest)")
    for name in runs:
        own = "xlmr_ray" + ending(name)
        ratio = spread([ours / theirs for ours, theirs in zip(rates[own], rates[name], strict=True)])
        print(f"{name:48} {spread(rates[name]):>24} docs/s" + (f", {own} is {ratio} times it" if name != own else ""))


if __name__ == "__main__":
    main()
