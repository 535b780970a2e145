"""`python -m tests.benchmarks.three_vectors TEXTS.parquet ENCODER`: what bge-m3's three outputs cost in one pass,
against the dense one alone, on this machine's CPU; FlagEmbedding's rate beside it, where it is installed; and the
memory that a document of 8,192 tokens takes, against what a job plans for a process.

The model is bge-m3 made small: its layout and positions, with `LAYERS` layers of `HIDDEN` numbers and random weights;
the tokenizer is that of ENCODER, a folder.
"""

import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from xlmr_ray import pipeline
from xlmr_ray.batch.cluster import PROCESS_BYTES
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.tensors import stored_values
from xlmr_ray.engine.engine import Engine
from xlmr_ray.tasks.registry import bind_task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

HIDDEN, LAYERS, HEADS, LONGEST = 384, 12, 6, 8192
PAGES, LONG, ROUNDS = 200, 8, 3
NAMES = ("embedding", "sparse", "multi-vector")


def save(folder: Path, encoder: str) -> Path:
    """A small bge-m3 in a folder."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, model_max_length=LONGEST)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
    )
    transformers.XLMRobertaModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    parts = [modules.Transformer(str(folder / "encoder"), max_seq_length=LONGEST)]
    parts += [modules.Pooling(HIDDEN, pooling_mode="cls"), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "m3"))
    torch.save(torch.nn.Linear(HIDDEN, 1).state_dict(), folder / "m3" / "sparse_linear.pt")
    torch.save(torch.nn.Linear(HIDDEN, HIDDEN).state_dict(), folder / "m3" / "colbert_linear.pt")
    shutil.rmtree(folder / "encoder")
    return folder / "m3"


def seconds(folder: Path, texts: list[str], rounds: int) -> list[float]:
    """The medians of dense alone and of all three, from encoded tables to output tables, taken in turn."""
    pipes = [pipeline(name, folder, device="cpu") for name in NAMES]
    columns = pa.table({"text": texts})
    encoded = [pipe.task.prepare(columns, pipe.tokenizer) for pipe in pipes]
    engines = [Engine.load(folder, [pipe.task for pipe in pipes[:count]], device="cpu") for count in (1, 3)]
    taken: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for engine, own, count in zip(engines, taken, (1, 3), strict=True):
            began = time.perf_counter()
            engine.outputs(encoded[:count])
            own.append(time.perf_counter() - began)
    return [statistics.median(own[1:] or own) for own in taken]


def flag_seconds(folder: Path, texts: list[str], rounds: int) -> float | None:
    """FlagEmbedding's median for the three outputs, from texts; None where it is not installed."""
    try:
        from FlagEmbedding import BGEM3FlagModel
    except ImportError:
        return None
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", passage_max_length=LONGEST, batch_size=16)
    own = []
    for _ in range(rounds):
        began = time.perf_counter()
        model.encode(texts, return_dense=True, return_sparse=True, return_colbert_vecs=True)
        own.append(time.perf_counter() - began)
    return statistics.median(own)


def tell(name: str, folder: Path, texts: list[str], rounds: int) -> None:
    dense, three = seconds(folder, texts, rounds)
    print(f"{name}: dense {dense:.2f} s, all three {three:.2f} s, {three / dense:.3f} times", flush=True)
    if (theirs := flag_seconds(folder, texts, max(1, rounds // 2))) is not None:
        print(f"{name}: FlagEmbedding {theirs:.2f} s, {theirs / three:.2f} times ours", flush=True)


def main() -> None:
    source, encoder = sys.argv[1:3]
    pages = [text for text in pq.read_table(source, columns=["text"])["text"].to_pylist() if text.strip()]
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = save(Path(name), encoder)
        whole = pipeline("embedding", folder, device="cpu")
        joined, at = [], 0
        while len(joined) < LONG:  # as many pages as it takes to be cut
            text = ""
            while len(whole.tokenizer(text)["input_ids"]) < LONGEST:
                text, at = f"{text} {' '.join(pages[at : at + 4])}", (at + 4) % len(pages)
            joined.append(text)
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            peak = apart.submit(peak_bytes, folder, joined[0]).result()
        planned = 4 * stored_values(model_folder(folder)) + PROCESS_BYTES
        print(f"a document of {LONGEST} tokens: {peak / 1e9:.2f} GB at most, planned {planned / 1e9:.2f}", flush=True)
        every = np.linspace(0, len(pages) - 1, PAGES).round().astype(int)
        tell(f"{PAGES} pages", folder, [pages[place] for place in every], ROUNDS)
        tell(f"{LONG} documents of {LONGEST} tokens", folder, joined, 1)


def peak_bytes(folder: Path, text: str) -> int:
    """The most memory of this process, from its start, with the three outputs of one document."""
    tokenizer = XLMRobertaTokenizer.from_pretrained(folder)
    tasks = [bind_task(name, folder, {}) for name in NAMES]
    encoded = [task.prepare(pa.table({"text": [text]}), tokenizer) for task in tasks]
    Engine.load(folder, tasks, device="cpu").outputs(encoded)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
