"""What a machine does a second: out of a measurement there, or estimated from stored figures."""

from dataclasses import dataclass

import numpy as np

from xlmr_ray.bench.result import Bench
from xlmr_ray.bench.sizing.hardware import UTILIZATION, Hardware
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.operations import attention_operations, matmul_operations

# Where no run was measured: the share of the engine's rate that is left of it, and seconds until the first shard.
PIPELINE_SHARE = 0.9
START_SECONDS = 20.0
# Tokens a second and core of the tokenizer, and bytes of an output row beside vectors, where neither was measured.
TOKENIZING = 400_000.0
ROW_BYTES = 48.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one machine (or one GPU). `sources`: where each figure is from, one line each; `estimated`: whether any of
    them was not measured.
    """

    tokens_per_second: float
    start_seconds: float
    tokens_per_document: float | None
    tokenizing_per_core: float
    output_bytes: float
    cores: int
    on_gpu: bool
    estimated: bool
    sources: tuple[str, ...]


def measured_rates(bench: Bench) -> Rates:
    """Those of the machine of a `bench.json`. The pipeline's where a run was measured, else a part of the engine's."""
    work, run = bench.work, bench.pipeline
    sources = [
        f"engine and tokenizer: measured on {bench.machine.device}, {work.documents:,} documents of {work.model}"
    ]
    if run is not None and run.steady_tokens_per_second:
        rate, start = run.steady_tokens_per_second, run.seconds - work.tokens / run.steady_tokens_per_second
        sources.append("pipeline and start: measured, a run of the same documents")
    else:
        rate, start = PIPELINE_SHARE * bench.encoding.tokens_per_second, START_SECONDS
        sources.append(
            f"pipeline: estimated at {PIPELINE_SHARE:.0%} of the engine, start at {START_SECONDS:.0f} s; "
            "xlmr-ray bench --pipeline measures both"
        )
    if work.repeated:
        sources.append(f"repeats: {work.repeated:.0%} of the sample; a run computes what repeats once: --known")
    return Rates(
        tokens_per_second=rate,
        start_seconds=max(0.0, start),
        tokens_per_document=work.tokens / work.documents,
        tokenizing_per_core=bench.tokenizing.tokens_per_second,
        output_bytes=work.output_bytes / work.documents,
        cores=bench.machine.cpus,
        on_gpu=bench.machine.on_gpu,
        estimated=run is None,
        sources=tuple(sources),
    )


def estimated(one: Hardware, config: XLMRobertaConfig, tokens_per_document: float, *, vectors: bool) -> Rates:
    """Those of a GPU that nobody has measured this on."""
    attention = attention_operations(config, np.array([tokens_per_document])) / tokens_per_document
    rate = UTILIZATION * one.matrix / (matmul_operations(config) + attention)
    return Rates(
        tokens_per_second=PIPELINE_SHARE * rate,
        start_seconds=START_SECONDS,
        tokens_per_document=None,
        tokenizing_per_core=TOKENIZING,
        output_bytes=ROW_BYTES + (4.0 * config.hidden_size if vectors else 0.0),
        cores=one.cores,
        on_gpu=True,
        estimated=True,
        sources=(
            f"matrix rate {one.matrix / 1e12:.0f} TFLOP/s: {one.source}",
            f"engine: estimated at {UTILIZATION:.0%} of it, the pipeline at {PIPELINE_SHARE:.0%} of the engine",
            f"tokenizer: estimated at {TOKENIZING:,.0f} tokens/s a core",
        ),
    )
