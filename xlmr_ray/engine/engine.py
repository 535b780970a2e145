"""Ragged ids in, each task's results out, in input order. One pass of the encoder whatever the number of tasks."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.failures import NO_TOKENS, NON_FINITE, OUT_OF_MEMORY
from xlmr_ray.engine.order import longest_first, next_batch
from xlmr_ray.errors import UserError
from xlmr_ray.model.packed import PackedBatch, pack
from xlmr_ray.modeling import XLMRobertaModel
from xlmr_ray.tasks.task import Task

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# CPU: with budgets from 1,024 to 4,096 tokens a batch's activations stay in the caches; larger ones were slower.
MAX_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass
class Results:
    """What a call of `Engine.run` gives: for each task, results `(N, ...)` in the order of the sequences.

    `failed` are the sequences without results (their rows are NaN): number -> (code, message).
    """

    raw: list[NDArray[np.float32]]
    failed: dict[int, tuple[str, str]]


@dataclass
class Stats:
    """Counters since the start. `padded` are tokens computed beyond the `tokens` of the sequences; seconds are the
    wall clock's.
    """

    sequences: int = 0
    tokens: int = 0
    padded: int = 0
    batches: int = 0
    seconds: float = 0.0


@dataclass
class Engine:
    """An encoder with its tasks' heads on one device. Not thread-safe."""

    model: XLMRobertaModel
    tasks: Sequence[Task]
    heads: Sequence[nn.Module]
    device: torch.device
    max_tokens: int
    report: LoadReport
    stats: Stats = field(default_factory=Stats)
    shapes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        # A first pass of one token warms up, and tells the shapes of results where there are no sequences at all.
        one = pack(np.zeros(1, np.int32), np.array([0, 1]), np.array([0]), self.model.config.pad_token_id)
        self.shapes = [tuple(output.shape[1:]) for output in self.forward(one)]
        self.stats = Stats()

    @classmethod
    def load(
        cls,
        folder: Path,
        tasks: Sequence[Task],
        *,
        dtype: str = "auto",
        device: str = "auto",
        attn_implementation: str = "auto",
        max_tokens: int | str = "auto",
    ) -> "Engine":
        """Loads the encoder and the heads of the tasks from a checkpoint's folder.

        `dtype="auto"` is the checkpoint's own on a GPU and float32 on a CPU; `device="auto"` is a GPU where there is
        one. Raises UserError for an argument or a checkpoint that does not fit.
        """
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        if where.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device {device}: torch {torch.__version__} finds no GPU; use device: cpu or auto")
        if dtype != "auto" and dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
        wanted = DTYPES[dtype] if dtype != "auto" else torch.float32 if where.type == "cpu" else None
        config = XLMRobertaConfig.from_dict(read_config(folder))
        if attn_implementation != "auto":
            config.attn_implementation = attn_implementation
        if max_tokens == "auto":
            max_tokens = MAX_TOKENS.get(where.type, MAX_TOKENS["cpu"])
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise UserError(f"max_tokens must be auto or a whole number from 1 on, got {max_tokens!r}")
        with torch.device("meta"):
            whole = nn.Module()
            whole.roberta = XLMRobertaModel(config, add_pooling_layer=False)
        heads = [task.head() for task in tasks]
        for head in heads:
            if any(p.is_meta for p in head.parameters()):
                for name, child in head.named_children():
                    whole.add_module(name, child)
        report = load_tensors(whole, folder, dtype=wanted, device=where)
        model = whole.get_submodule("roberta")
        assert isinstance(model, XLMRobertaModel)
        model.encoder.fuse()
        model.eval()
        for head in heads:
            head.eval().requires_grad_(False).to(where)
        return cls(model, tasks, heads, where, max_tokens, report)

    def run(self, input_ids: pa.ListArray | pa.ChunkedArray) -> Results:
        """Sequences of ids, `list<int32>`, through the encoder and every head.

        When memory runs out the token budget is halved, for good, and the rest goes on; a sequence that does not fit
        alone is in `failed`, as is one with a result that is not a number.
        """
        if isinstance(input_ids, pa.ChunkedArray):
            input_ids = input_ids.combine_chunks()
        ids = input_ids.flatten().to_numpy()
        row_splits = input_ids.offsets.to_numpy().astype(np.int64)
        row_splits -= row_splits[0]
        lengths = np.diff(row_splits)
        too_long = int(lengths.max(initial=0))
        if too_long > self.model.config.max_length:
            raise UserError(
                f"a sequence of {too_long} tokens, the model has positions for {self.model.config.max_length}"
            )
        start = time.perf_counter()
        raw = [np.full((len(lengths), *shape), np.nan, np.float32) for shape in self.shapes]
        failed: dict[int, tuple[str, str]] = dict.fromkeys(
            np.flatnonzero(lengths == 0).tolist(), (NO_TOKENS, "the text has no tokens")
        )
        done: list[tuple[NDArray[np.int64], list[Tensor]]] = []
        order = longest_first(lengths)[: len(lengths) - len(failed)]
        while len(order):
            chosen = next_batch(lengths, order, self.max_tokens)
            try:
                done.append((chosen, self.forward(pack(ids, row_splits, chosen, self.model.config.pad_token_id))))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if len(chosen) > 1:
                    self.shrink(int(lengths[chosen].sum()))
                    continue
                alone = int(chosen[0])
                failed[alone] = (OUT_OF_MEMORY, f"{lengths[alone]} tokens do not fit in the memory of {self.device}")
            order = order[len(chosen) :]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the results' copies, once for all batches
        for chosen, outputs in done:
            for i, output in enumerate(outputs):
                values = output.numpy()
                raw[i][chosen] = values
                for bad in chosen[~np.isfinite(values.reshape(len(values), -1)).all(axis=1)].tolist():
                    failed[bad] = (NON_FINITE, "the model's result holds NaN or infinity")
        self.stats.seconds += time.perf_counter() - start
        return Results(raw, failed)

    @torch.inference_mode()
    def forward(self, batch: PackedBatch) -> list[Tensor]:
        """Each task's results `(N, ...)` for a batch, fp32 in the CPU's memory (on a GPU: once it is synchronized)."""
        on_gpu = self.device.type == "cuda"
        there = batch.pin_memory().to(self.device) if on_gpu else batch
        hidden = self.model.encoder(self.model.embeddings(there.input_ids, there.position_ids), there.layout)
        outputs = [
            task.forward(head, hidden, there).float().to("cpu", non_blocking=True)
            for task, head in zip(self.tasks, self.heads, strict=True)
        ]
        self.stats.batches += 1
        self.stats.sequences += batch.sequences
        self.stats.tokens += batch.tokens
        self.stats.padded += len(batch.input_ids) - batch.tokens
        return outputs

    def shrink(self, tokens: int) -> None:
        """Halves the budget after a batch of so many tokens did not fit."""
        self.max_tokens = max(1, min(self.max_tokens, tokens) // 2)
        log.warning("out of memory with %d tokens in a batch: going on with at most %d", tokens, self.max_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory; the CPU's allocator has no exception of its own."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
