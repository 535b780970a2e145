"""The measurement itself: tokenizing on one core, encoding on all of them, without Ray."""

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from xlmr_ray.batch.job import Job
from xlmr_ray.batch.observe.machine import device_name, host
from xlmr_ray.bench.matrix_rate import matrix_rate
from xlmr_ray.bench.result import Bench, Machine, Rate, Work
from xlmr_ray.bench.sample import Sample, take_sample
from xlmr_ray.bench.shares import shares
from xlmr_ray.engine.engine import Engine
from xlmr_ray.errors import UserError
from xlmr_ray.model.operations import attention_operations, matmul_operations
from xlmr_ray.model.quantized.fp8 import Fp8Linear
from xlmr_ray.model.quantized.int8 import Int8Linear
from xlmr_ray.tasks.encoded import documents, keep_documents

Say = Callable[[str], None]
# Sequences that the profiler sees: enough for every kind of batch, few enough for its own cost.
PROFILED = 48


def measure(job: Job, *, most: int, rounds: int, encoders: int | None, say: Say) -> Bench:
    """Measures a job's engine on this machine, with `most` of its documents. `encoders`: how many at once on a CPU,
    each with its share of the cores; None is one a core, as a run has them.
    """
    if rounds < 1 or most < 1:
        raise UserError(f"documents and rounds are whole numbers from 1 on, got {most} and {rounds}")
    sample = take_sample(job, most)
    say(f"{sample.documents:,} documents, {int(sample.lengths.sum()):,} tokens, longest {int(sample.lengths.max()):,}")
    start = time.perf_counter()
    first = load(job, sample)
    load_seconds = time.perf_counter() - start
    on_gpu = first.device.type == "cuda"
    cores = usable_cpus()
    copies = 1 if on_gpu else min(encoders or cores, sample.documents)
    engines = [first, *(load(job, sample) for _ in range(copies - 1))]
    threads = 0 if on_gpu else max(1, cores // copies)
    say("tokenizing, on one core")
    tokenizing = rate([timed(sample.tokenized) for _ in range(rounds + 1)][1:], sample, workers=1)
    say(f"encoding, {copies} at once")
    parts = dealt(sample, copies)
    encode_all(engines, parts, threads)
    before = [(one.stats.tokens, one.stats.padded) for one in engines]
    seconds = [timed(partial(encode_all, engines, parts, threads)) for _ in range(rounds)]
    tokens = sum(one.stats.tokens - was for one, (was, _) in zip(engines, before, strict=True))
    padded = sum(one.stats.padded - was for one, (_, was) in zip(engines, before, strict=True))
    say("the machine's matrix rate")
    dtype = first.model.dtype
    matrix = matrix_rate(first.device, dtype, copies)
    layer = {"int8": Int8Linear, "fp8": Fp8Linear}.get(job.engine.quantization or "")
    say("where the time goes")
    few = encoded_part(sample, np.arange(sample.documents) % max(1, sample.documents // PROFILED) == 0)
    if not on_gpu:
        torch.set_num_threads(threads)
    where = shares(lambda: first.results(few), first.device)
    attention = attention_operations(first.model.config, sample.lengths)
    total = int(sample.lengths.sum())
    return Bench(
        machine=Machine(
            host=host(),
            device=device_name(first.device),
            on_gpu=on_gpu,
            cpus=cores,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            torch=torch.__version__,
            matrix=matrix,
            matrix_products=matrix_rate(first.device, dtype, copies, layer) if layer else matrix,
        ),
        work=Work(
            model=job.tasks[0].model or job.model or "",
            tasks=tuple(section.task for section in job.tasks),
            dtype=str(dtype).removeprefix("torch."),
            quantization=job.engine.quantization,
            attn_implementation=job.engine.attn_implementation,
            max_tokens=first.max_tokens,
            documents=sample.documents,
            sequences=len(sample.lengths),
            tokens=total,
            longest=int(sample.lengths.max()),
            operations=total * matmul_operations(first.model.config) + attention,
            attention_operations=attention,
            output_bytes=output_bytes(first, sample),
            repeated=sample.repeated,
        ),
        load_seconds=load_seconds,
        tokenizing=tokenizing,
        encoding=rate(seconds, sample, workers=copies),
        padding=padded / max(1, tokens),
        shares=where,
    )


def usable_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(job: Job, sample: Sample) -> Engine:
    return Engine.load(sample.folders[0], sample.tasks, job.engine.settings, head_folders=sample.folders)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rate(seconds: Sequence[float], sample: Sample, *, workers: int) -> Rate:
    """The median of the rounds."""
    middle = statistics.median(seconds)
    return Rate(
        workers=workers,
        documents_per_second=sample.documents / middle,
        tokens_per_second=int(sample.lengths.sum()) / middle,
        spread=max(seconds) / min(seconds),
    )


def encode_all(engines: Sequence[Engine], parts: Sequence[list[pa.Table]], threads: int) -> None:
    """All parts once, each by one engine in one thread."""

    def work(engine: Engine, encoded: list[pa.Table]) -> None:
        if threads:
            torch.set_num_threads(threads)
        engine.results(encoded)

    with ThreadPoolExecutor(len(engines)) as pool:
        for done in [pool.submit(work, *pair) for pair in zip(engines, parts, strict=True)]:
            done.result()


def dealt(sample: Sample, parts: int) -> list[list[pa.Table]]:
    """The encoded tables in so many parts of nearly equal work: documents dealt out by their tokens, the longest first,
    each to the part that has the fewest.
    """
    owners = documents(sample.encoded[0])
    tokens = np.bincount(owners, weights=sample.lengths, minlength=sample.documents)
    totals = np.zeros(parts)
    owner = np.zeros(sample.documents, np.int64)
    for document in np.argsort(-tokens, kind="stable").tolist():
        owner[document] = totals.argmin()
        totals[owner[document]] += tokens[document]
    return [encoded_part(sample, owner == index) for index in range(parts)]


def encoded_part(sample: Sample, kept: NDArray[np.bool_]) -> list[pa.Table]:
    """Each task's encoded table of some documents."""
    return [keep_documents(table, kept)[0] for table in sample.encoded]


def output_bytes(engine: Engine, sample: Sample) -> int:
    """The size of the results' Parquet file."""
    results = engine.results(sample.encoded)
    size = 0
    for task, result, encoded in zip(sample.tasks, results, sample.encoded, strict=True):
        sink = io.BytesIO()
        pq.write_table(task.postprocess(result.raw, encoded), sink, compression="zstd")
        size += sink.tell()
    return size


def save(bench: Bench, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bench.to_json(), "utf-8")
