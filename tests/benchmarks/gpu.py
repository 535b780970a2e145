"""Versions of the engine on one GPU: predicted and measured, each against the GPU's own matrix rate in the same call.

For each shape (XLM-R base and large, random weights: rates do not depend on them) and version: tokens a second, the
share of the bfloat16 product of 8192^3 (MFU), and against transformers' best setting. Lengths are those of the corpus,
up to 512 tokens. `--small` runs all of it on a CPU with a tiny shape, to see that it works.
usage: python -m tests.benchmarks.gpu [--small] [--documents N] [--lengths FILE.npy] [--only NAME] [--rounds N]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch

from xlmr_ray import XLMRobertaConfig
from xlmr_ray.bench.matrix_rate import matrix_rate
from xlmr_ray.engine.engine import Engine
from xlmr_ray.errors import UserError
from xlmr_ray.model.operations import attention_operations, matmul_operations
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.embedding import Embedding


@dataclass(frozen=True)
class Version:
    """One way to run the engine. `predicted`: the share of the matrix rate (base, large) that we expect of it, and
    why, written before it was ever measured.
    """

    name: str
    attention: str
    max_tokens: int
    compiled: bool
    predicted: tuple[float, float]
    why: str
    fp8: bool = False


VERSIONS = (
    Version("sdpa, by runs of equal length", "sdpa", 16384, False, (0.10, 0.20), "a kernel a length: launches rule"),
    Version("varlen, 4k tokens", "varlen", 4096, False, (0.25, 0.45), "12 launches a layer, 3 us each, over 0.1 ms"),
    Version("varlen, 16k tokens", "varlen", 16384, False, (0.45, 0.60), "launches are hidden; norms and GELU are not"),
    Version("varlen, 64k tokens", "varlen", 65536, False, (0.45, 0.62), "as before: memory-bound parts do not shrink"),
    Version("varlen, 16k tokens, compiled", "varlen", 16384, True, (0.60, 0.70), "residual, norm and GELU fused"),
    Version("varlen, 64k tokens, compiled", "varlen", 65536, True, (0.62, 0.72), "fewer tails of the last wave"),
    Version("flash 3, 16k tokens, compiled", "flash_attention_3", 16384, True, (0.62, 0.71), "attention is 8 %"),
    Version(
        "varlen, 16k, compiled, fp8", "varlen", 16384, True, (0.85, 1.05), "products twice as fast, the rest not", True
    ),
)
"""Measured: not yet; no GPU could be had. The table that this prints goes here, with the GPU's name and the date."""


def shape(name: str) -> XLMRobertaConfig:
    if name == "small":
        return XLMRobertaConfig(
            vocab_size=1000,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=514,
        )
    sizes = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}[name]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, **dict(zip(names, sizes, strict=True)))


def lengths(path: str | None, documents: int) -> np.ndarray:
    """Given, or like those of web pages cut at 512: a third of them are cut."""
    if path:
        return np.load(path)[:documents].astype(np.int64)
    return np.minimum(512, np.random.default_rng(1).lognormal(5.6, 0.9, documents)).astype(np.int64).clip(4)


def engine(config: XLMRobertaConfig, version: Version, device: torch.device, dtype: torch.dtype) -> Engine:
    config = XLMRobertaConfig.from_dict(config.to_dict())
    config.attn_implementation = version.attention
    torch.manual_seed(0)
    with device:
        model = XLMRobertaModel(config, add_pooling_layer=False)
    model = model.to(dtype).eval().requires_grad_(False)
    model.encoder.fuse()
    if version.fp8:
        eight_bit_floats(model.encoder)
    if version.compiled:
        model.encoder.compile_layers()
    task = Embedding(config=config, folder=None)
    return Engine(model, [task], [task.head()], device, version.max_tokens)


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median, after two calls that compile and warm up."""
    taken = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def reference(config: XLMRobertaConfig, ids: list[list[int]], device: torch.device, dtype: torch.dtype) -> Callable:
    """transformers at its best: 16 bits, sdpa, sorted, batches of as many tokens as ours, one synchronization."""
    import transformers

    values = {k: v for k, v in config.to_dict().items() if k not in ("architectures", "transformers_version")}
    own = transformers.XLMRobertaConfig(**values, attn_implementation="sdpa")
    with device:
        model = transformers.XLMRobertaModel(own, add_pooling_layer=False).to(dtype).eval()
    order = sorted(ids, key=len, reverse=True)
    batches: list[list[list[int]]] = []
    for one in order:
        if batches and len(batches[-1][0]) * (len(batches[-1]) + 1) <= 16384:
            batches[-1].append(one)
        else:
            batches.append([one])

    @torch.inference_mode()
    def run() -> None:
        means = []
        for batch in batches:
            padded = torch.ones(len(batch), len(batch[0]), dtype=torch.long)
            for row, one in zip(padded, batch, strict=True):
                row[: len(one)] = torch.tensor(one)
            there = padded.to(device)
            mask = there.ne(1)
            hidden = model(input_ids=there, attention_mask=mask.long()).last_hidden_state
            means.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        torch.cat(means).float().cpu()

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--documents", type=int, default=4096)
    parser.add_argument("--lengths", help="an .npy of token counts")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.small else "cuda")
    dtype = torch.float32 if arguments.small else torch.bfloat16
    name = "CPU" if arguments.small else torch.cuda.get_device_name()
    rate = matrix_rate(device, dtype, 1)
    print(f"{name}, torch {torch.__version__}: matrix rate {rate / 1e12:.3f} TFLOP/s", flush=True)
    sizes = lengths(arguments.lengths, arguments.documents)
    generator = np.random.default_rng(2)
    for place, which in enumerate(["small"] if arguments.small else ["base", "large"]):
        config = shape(which)
        ids = [generator.integers(3, config.vocab_size, n).tolist() for n in sizes]
        column = pa.array(ids, pa.list_(pa.int32()))
        operations = sizes.sum() * matmul_operations(config) + attention_operations(config, sizes)
        theirs = seconds(reference(config, ids, device, dtype), device, arguments.rounds)
        print(f"{which}: transformers, sdpa, sorted: {sizes.sum() / theirs:,.0f} tokens/s", flush=True)
        print(f"| {which} | tokens/s | MFU | predicted | times transformers | a document's bits | why |", flush=True)
        for version in VERSIONS:
            if arguments.only not in version.name:
                continue
            if arguments.small:
                version = replace(version, attention="sdpa", max_tokens=min(version.max_tokens, 4096))
            try:
                one = engine(config, version, device, dtype)
                took = seconds(partial(one.run, column), device, arguments.rounds)
                got = one.run(column).raw[0]
                one.max_tokens = max(512, version.max_tokens // 3)
                away = float(np.abs(one.run(column).raw[0] - got).max())
            except UserError as error:
                print(f"| {version.name} | {error} |", flush=True)
                continue
            same = "the same in any batch" if away == 0 else f"differ by {away:.1e}"
            print(
                f"| {version.name} | {sizes.sum() / took:,.0f} | {operations / took / rate:.1%} "
                f"| {version.predicted[min(place, 1)]:.0%} | {theirs / took:.2f} | {same} | {version.why} |",
                flush=True,
            )
            del one
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
