"""Ragged ids in, each task's results out, in input order. One pass of the encoder whatever the number of tasks."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.quantization import SCHEMES, scheme, steady_int8
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.batches import longest_first, next_batch
from xlmr_ray.engine.failures import NO_TOKENS, NON_FINITE, OUT_OF_MEMORY
from xlmr_ray.engine.last_layer import rows_read
from xlmr_ray.engine.units import Units
from xlmr_ray.errors import UserError
from xlmr_ray.model.encoder import Trace
from xlmr_ray.model.heads import LMHead
from xlmr_ray.model.meta_device import shapes_only
from xlmr_ray.model.packed_batch import PackedBatch, pack
from xlmr_ray.model.quantized.fp8 import CAPABILITY as FP8
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.model.quantized.int8 import eight_bits
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.task import Task

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# CPU: 1,024 tokens stay in the caches; 2,048 were up to 9 % slower where others use these too, 512 always were.
MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
# What does the encoder's products in eight bits, once its weights are there.
PRODUCTS = {"int8": eight_bits, "fp8": eight_bit_floats}


@dataclass
class Results:
    """What a call of `Engine.run` gives: for each task, results `(R, ...)`, a row a unit of the task, in the order of
    the sequences.

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
    report: LoadReport | None = None
    stats: Stats = field(default_factory=Stats)
    shapes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.set_tasks(self.tasks)

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """The tasks with other options in their place: what their heads are made of must be the same."""
        self.tasks, kept = tasks, replace(self.stats)
        # A first pass of one token warms up, and tells the shapes of results where there are no sequences at all.
        zero = np.zeros(1, np.int32)
        one = pack(zero, np.array([0, 1]), np.array([0]), self.model.config, targets=zero)
        self.shapes = [tuple(output.shape[1:]) for output in self.forward(one, range(len(self.tasks)))]
        self.stats = kept

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
        quantization: str | None = None,
        compile: bool = False,
        head_folders: Sequence[Path] | None = None,
    ) -> "Engine":
        """Loads the encoder from a checkpoint's folder, and the heads of the tasks from it or from `head_folders`, one
        a task: checkpoints that share the encoder's weights, which is the caller's to know.

        `dtype="auto"` is the checkpoint's own on a GPU and float32 on a CPU; `device="auto"` is a GPU where there is
        one. `quantization` is the encoder's products in eight bits, for speed, `int8` on a CPU and `fp8` on a GPU; or
        `nf4`, `fp4` or `int8-weights`, its weights in fewer bits and products in floating point, for memory and not
        for speed. `compile`: see `Encoder.compile_layers`; it takes a minute, and changes answers by rounding.

        Raises UserError for an argument or a checkpoint that does not fit.
        """
        where, wanted = place_and_dtype(device, dtype)
        config = XLMRobertaConfig.from_dict(read_config(folder))
        config.attn_implementation = attn_implementation
        budget = token_budget(max_tokens, where)
        with shapes_only():
            whole = nn.Module()
            whole.roberta = XLMRobertaModel(config, add_pooling_layer=False)
        heads = [task.head() for task in tasks]
        joined: list[nn.Module] = []
        apart: list[tuple[nn.Module, Path]] = []
        for head, place in zip(heads, head_folders or [folder] * len(heads), strict=True):
            names = dict(head.named_children())
            if not any(p.is_meta for p in head.parameters()):
                continue
            if place != folder or any(hasattr(whole, name) for name in names):
                apart.append((head, place))
                continue
            joined.append(head)
            for name, child in names.items():
                whole.add_module(name, child)
                tie(child, whole.roberta)
        products = PRODUCTS.get(quantization or "")
        if quantization == "int8":
            check_int8(where, wanted)
        elif quantization == "fp8":
            check_fp8(where, wanted)
        elif quantization is not None and quantization not in SCHEMES:
            raise UserError(f"quantization {quantization!r} is none of {', '.join((*PRODUCTS, *SCHEMES))}")
        how = None if quantization is None or products else scheme(quantization, wanted or torch.bfloat16)
        # Of eight-bit floats the GPU's kernels give bfloat16 alone.
        dtype_read = torch.bfloat16 if quantization == "fp8" else wanted
        report = load_tensors(whole, folder, dtype=dtype_read, device=where, quantization=how)
        steady_int8(whole)
        for head in joined:
            for name, _ in list(head.named_children()):
                head.add_module(name, whole.get_submodule(name))  # a layer that is quantized is another module now
        model = whole.get_submodule("roberta")
        assert isinstance(model, XLMRobertaModel)
        for head, place in apart:
            for child in head.children():
                if isinstance(child, LMHead) and config.tie_word_embeddings:
                    child.decoder.register_parameter("weight", None)  # the encoder's, below
            load_tensors(head, place, dtype=report.dtype, device=where)
            for child in head.children():
                tie(child, model)
        model.encoder.fuse()
        if products:
            products(model.encoder)
        if compile:
            model.encoder.compile_layers()
        model.eval()
        for head in heads:
            head.eval().requires_grad_(False).to(where)
        return cls(model, tasks, heads, where, budget, report)

    @classmethod
    def of(cls, model: Pretrained, tasks: Sequence[Task], *, max_tokens: int | str = "auto") -> "Engine":
        """A model in memory, whose weights are shared and not changed. Raises UserError where it lacks a task's
        head.
        """
        base = model if isinstance(model, XLMRobertaModel) else model.get_submodule("roberta")
        assert isinstance(base, XLMRobertaModel)
        heads = [task.head() for task in tasks]
        for task, head in zip(tasks, heads, strict=True):
            for name, child in list(head.named_children()):
                own = getattr(model, name, None) or getattr(base, name, None)
                if not any(p.is_meta for p in child.parameters()):
                    child.to(base.device)
                elif type(own) is not type(child):
                    raise UserError(f"{type(task).__name__}: the model is a {type(model).__name__}, without {name!r}")
                else:
                    setattr(head, name, own)
        model.eval()
        return cls(base, tasks, heads, base.device, token_budget(max_tokens, base.device), model.load_report)

    def run(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray,
        targets: pa.ListArray | pa.ChunkedArray | None = None,
        *,
        tasks: Sequence[int] | None = None,
    ) -> Results:
        """Sequences of ids, `list<int32>`, through the encoder and the heads of the `tasks` (by place; None: all).

        `targets` are lists of the same lengths, -100 where a token has none. When memory runs out the token budget is
        halved, for good, and the rest goes on; a sequence that does not fit alone is in `failed`, as is one with a
        result that is not a number.
        """
        places = range(len(self.tasks)) if tasks is None else tasks
        ids, row_splits = ragged(input_ids)
        lengths = np.diff(row_splits)
        wanted: NDArray[np.int32] | None = None
        if targets is not None:
            wanted, target_splits = ragged(targets)
            if not np.array_equal(target_splits, row_splits):
                raise ValueError("targets: lists of the lengths of input_ids are wanted")
        too_long = int(lengths.max(initial=0))
        if too_long > self.model.config.max_length:
            raise UserError(
                f"a sequence of {too_long} tokens, the model has positions for {self.model.config.max_length}"
            )
        start = time.perf_counter()
        units = [Units.of(self.tasks[place].unit, row_splits, wanted) for place in places]
        raw = [
            np.full((unit.total, *self.shapes[place]), np.nan, np.float32)
            for place, unit in zip(places, units, strict=True)
        ]
        failed: dict[int, tuple[str, str]] = dict.fromkeys(
            np.flatnonzero(lengths == 0).tolist(), (NO_TOKENS, "the text has no tokens")
        )
        config = self.model.config
        done: list[tuple[NDArray[np.int64], list[Tensor]]] = []
        order = longest_first(lengths)[: len(lengths) - len(failed)]
        while len(order):
            chosen = next_batch(lengths, order, self.max_tokens)
            try:
                batch = pack(ids, row_splits, chosen, config, targets=wanted)
                done.append((chosen, self.forward(batch, places)))
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
            for results, unit, output in zip(raw, units, outputs, strict=True):
                values = output.numpy()
                rows, owners = unit.rows(chosen)
                results[rows] = values
                finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))  # there may be no rows
                for bad in np.unique(owners[~finite]).tolist():
                    failed[bad] = (NON_FINITE, "the model's result holds NaN or infinity")
        self.stats.seconds += time.perf_counter() - start
        return Results(raw, failed)

    @torch.inference_mode()
    def forward(self, batch: PackedBatch, places: Sequence[int]) -> list[Tensor]:
        """The results `(R, ...)` of the tasks at `places` for a batch, fp32 in the CPU's memory (on a GPU: once it is
        synchronized).
        """
        on_gpu = self.device.type == "cuda"
        there = batch.pin_memory().to(self.device) if on_gpu else batch
        last, trace = self.encode(batch, there, [self.tasks[place] for place in places])
        outputs = []
        for place in places:
            task = self.tasks[place]
            hidden = last
            if task.layers and trace.hidden_states is not None:
                hidden = torch.stack([trace.hidden_states[layer] for layer in task.layers])
            outputs.append(to_host(task.forward(self.heads[place], hidden, there).float()))
        self.stats.batches += 1
        self.stats.sequences += batch.sequences
        self.stats.tokens += batch.tokens
        self.stats.padded += len(batch.input_ids) - batch.tokens
        return outputs

    def encode(self, batch: PackedBatch, there: PackedBatch, tasks: Sequence[Task]) -> tuple[Tensor, Trace]:
        """The last hidden states `(T, hidden)`, as far as the tasks read them, and all of them if one wants more. The
        batch is in the CPU's memory, and `there` on the model's device.
        """
        layers = any(task.layers for task in tasks)
        trace = Trace(hidden_states=[] if layers else None)
        rows = None if layers else rows_read(batch, {task.reads for task in tasks})
        if rows is not None and self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        embedded = self.model.embeddings(there.input_ids, there.position_ids)
        return self.model.encoder(embedded, there.layout, trace, rows=rows), trace

    def shrink(self, tokens: int) -> None:
        """Halves the budget after a batch of so many tokens did not fit."""
        self.max_tokens = max(1, min(self.max_tokens, tokens) // 2)
        log.warning("out of memory with %d tokens in a batch: going on with at most %d", tokens, self.max_tokens)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def place_and_dtype(device: str, dtype: str) -> tuple[torch.device, torch.dtype | None]:
    """The device that `auto` or a name stands for, and the dtype, None for the files' own. Raises UserError where it is
    not there or not known.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device}: torch {torch.__version__} finds no GPU; use device: cpu or auto")
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return where, DTYPES[dtype] if dtype != "auto" else torch.float32 if where.type == "cpu" else None


def check_int8(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raises UserError where products in eight bits are not to be had."""
    if device.type != "cpu":
        raise UserError(
            f"quantization int8 is for CPUs, got device {device}; on a GPU take {', '.join(SCHEMES)}, or none"
        )
    if dtype is not torch.float32:
        raise UserError(
            f"quantization int8 computes in float32 between its products, got dtype {dtype}; use dtype: auto"
        )


def check_fp8(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raises UserError where products of eight-bit floats are not to be had."""
    if device.type != "cuda":
        raise UserError(f"quantization fp8 is for GPUs, got device {device}; on a CPU take int8")
    if torch.cuda.get_device_capability(device) < FP8:
        got = "{}.{}".format(*torch.cuda.get_device_capability(device))
        raise UserError(
            f"quantization fp8 wants a GPU of compute capability {FP8[0]}.{FP8[1]} or newer, got {got} "
            f"({torch.cuda.get_device_name(device)}); leave it out"
        )
    if dtype not in (None, torch.bfloat16):
        raise UserError(f"quantization fp8 computes in bfloat16 between its products, got {dtype}; use dtype: auto")


def token_budget(max_tokens: int | str, device: torch.device) -> int:
    """As asked, or by the device. Raises UserError for what is neither auto nor a whole number from 1 on."""
    if max_tokens == "auto":
        return MAX_TOKENS.get(device.type, MAX_TOKENS["cpu"])
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise UserError(f"max_tokens must be auto or a whole number from 1 on, got {max_tokens!r}")
    return max_tokens


def tie(module: nn.Module, base: XLMRobertaModel) -> None:
    """Makes the word embeddings the last product of a language modelling head, where the configuration ties them."""
    if isinstance(module, LMHead) and base.config.tie_word_embeddings:
        module.decoder.weight = base.embeddings.word_embeddings.weight


def to_host(x: Tensor) -> Tensor:
    """`x` in the CPU's memory. From a GPU it is on its way there until that is synchronized: only copies into pinned
    memory go on while the next batch computes, others would be waited for.
    """
    if x.device.type == "cpu":
        return x
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def ragged(lists: pa.ListArray | pa.ChunkedArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The flat values `(T)` and the row splits `(N + 1)` of lists of int32."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    splits = lists.offsets.to_numpy().astype(np.int64)
    return lists.flatten().to_numpy(), splits - splits[0]


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory; the CPU's allocator has no exception of its own."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
