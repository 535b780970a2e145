"""`python -m tests.benchmarks.three_vectors TEXTS.parquet ENCODER [pages|long|memory]`: what bge-m3's three outputs
cost in one pass, against the dense one only, on this machine's CPU, with FlagEmbedding's time beside it where it is
installed; and the memory that a job's encoder takes for documents of 8,192 tokens, against what the job plans for it.

The model is bge-m3 made small: its layout, depth and positions, and random weights; the tokenizer is that of ENCODER,
a folder. Documents are taken in turn by each: dense only, all three, FlagEmbedding.
"""

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from xlmr_ray import pipeline
from xlmr_ray.batch.cluster import PROCESS_BYTES
from xlmr_ray.batch.job import check_job
from xlmr_ray.batch.plan import task_recipes
from xlmr_ray.batch.run import run_job
from xlmr_ray.batch.shard_rows import held_bytes
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.checkpoint.tensors import stored_values
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings

LONGEST, PAGES, LONG = 8192, 200, 8
NAMES = ("embedding", "sparse", "multi-vector")


def save(folder: Path, encoder: str, *, hidden: int, layers: int) -> Path:
    """A small bge-m3 in a folder, with heads of 64 numbers as the real one has."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, model_max_length=LONGEST)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
    )
    transformers.XLMRobertaModel(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    parts = [modules.Transformer(str(folder / "encoder"), max_seq_length=LONGEST)]
    parts += [modules.Pooling(hidden, pooling_mode="cls"), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "m3"))
    torch.save(torch.nn.Linear(hidden, 1).state_dict(), folder / "m3" / "sparse_linear.pt")
    torch.save(torch.nn.Linear(hidden, hidden).state_dict(), folder / "m3" / "colbert_linear.pt")
    shutil.rmtree(folder / "encoder")
    return folder / "m3"


def ours(folder: Path, names: tuple[str, ...]) -> Callable[[list[str]], object]:
    """From texts to the tables of the tasks, in one pass."""
    pipes = [pipeline(name, folder, device="cpu") for name in names]
    engine = Engine.load(folder, [pipe.task for pipe in pipes], EngineSettings(device="cpu"))

    def compute(texts: list[str]) -> object:
        columns = pa.table({"text": texts})
        return engine.outputs([pipe.task.prepare(columns, pipe.tokenizer) for pipe in pipes])

    return compute


def flag_embedding(folder: Path) -> Callable[[list[str]], object] | None:
    """From texts to FlagEmbedding's three outputs; None where it is not installed."""
    try:
        from FlagEmbedding import BGEM3FlagModel
    except ImportError:
        return None
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu", passage_max_length=LONGEST, batch_size=16)
    return lambda texts: model.encode(texts, return_dense=True, return_sparse=True, return_colbert_vecs=True)


def tell(what: str, folder: Path, lots: list[list[str]], theirs: int) -> None:
    """Each lot of texts is taken by each in turn, and by FlagEmbedding the first few, after a short text for each; what
    was found so far is said after each lot.
    """
    ways = {"dense only": ours(folder, NAMES[:1]), "all three": ours(folder, NAMES)}
    if (flag := flag_embedding(folder)) is not None:
        ways["FlagEmbedding"] = flag
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for compute in ways.values():
        compute(["a short text"])
    for place, texts in enumerate(lots):
        for name, compute in ways.items():
            if name != "FlagEmbedding" or place < theirs:
                began = time.perf_counter()
                compute(texts)
                taken[name].append(time.perf_counter() - began)
        say_so_far(what, len(lots), taken)


def say_so_far(what: str, lots: int, taken: dict[str, list[float]]) -> None:
    for name, seconds in taken.items():
        dense = taken["dense only"][: len(seconds)]
        ratios = [one / other for one, other in zip(seconds, dense, strict=True)]
        print(
            f"{what}, {len(seconds)} of {lots} lots: {name} {sum(seconds):.2f} s, {sum(seconds) / sum(dense):.3f} "
            f"times dense only, median of lots {statistics.median(ratios):.3f}",
            flush=True,
        )


def long_texts(folder: Path, pages: list[str], count: int) -> list[str]:
    """Texts of pages, each of as many as it takes to be cut."""
    tokenizer = pipeline("embedding", folder, device="cpu").tokenizer
    joined, at = [], 0
    while len(joined) < count:
        text = ""
        while len(tokenizer(text)["input_ids"]) < LONGEST:
            text, at = f"{text} {' '.join(pages[at : at + 4])}", (at + 4) % len(pages)
        joined.append(text)
    return joined


def tell_memory(folder: Path, texts: list[str]) -> None:
    """The most memory of a job's encoder, and what the job plans for one."""
    with tempfile.TemporaryDirectory() as name:
        pq.write_table(pa.table({"text": texts}), Path(name) / "texts.parquet")
        job = {
            "model": str(folder),
            "input": {"path": str(Path(name) / "texts.parquet"), "text": "text"},
            "tasks": list(NAMES),
            "output": {"path": str(Path(name) / "out")},
            "cluster": {"encoders": 1},
        }
        over, most = threading.Event(), [0]
        watcher = threading.Thread(target=watch, args=(over, most))
        watcher.start()
        outcome = run_job(check_job(job, "memory"), quiet=True)
        over.set()
        watcher.join()
    rows = outcome.manifest.rows_ok
    results = held_bytes(task_recipes(check_job(job, "memory")), rows)
    planned = 4 * stored_values(model_folder(folder)) + results + PROCESS_BYTES
    print(f"{rows} documents of {LONGEST} tokens: {most[0] / 1e9:.2f} GB at most, planned {planned / 1e9:.2f}")


def watch(over: threading.Event, most: list[int]) -> None:
    """Keeps the largest resident memory of an encoder's process in `most`."""
    while not over.wait(0.05):
        for process in psutil.Process().children(recursive=True):
            try:
                if "Encode" in " ".join(process.cmdline()):
                    most[0] = max(most[0], process.memory_info().rss)
            except psutil.Error:
                continue


def main() -> None:
    source, encoder = sys.argv[1:3]
    pages = [text for text in pq.read_table(source, columns=["text"])["text"].to_pylist() if text.strip()]
    torch.set_num_threads(2)
    for part in sys.argv[3:] or ("pages", "long", "memory"):
        with tempfile.TemporaryDirectory() as name:
            if part == "memory":  # as wide as the real one: so are its activations
                folder = save(Path(name), encoder, hidden=1024, layers=2)
                tell_memory(folder, long_texts(folder, pages, 4))
                continue
            folder = save(Path(name), encoder, hidden=256, layers=24)
            if part == "pages":
                every = np.linspace(0, len(pages) - 1, PAGES).round().astype(int)
                chosen = [pages[place] for place in every]
                tell(f"{PAGES} pages", folder, [chosen[at::10] for at in range(10)], 10)
            else:
                texts = long_texts(folder, pages, LONG)
                tell(f"{LONG} documents of {LONGEST} tokens", folder, [[text] for text in texts], 2)


if __name__ == "__main__":
    main()
