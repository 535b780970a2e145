"""Ragged ids in, each task's results out, in input order. One pass of the encoder whatever the number of tasks."""

import copy
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from xlmr_ray.checkpoint.folder import LORA, encoder_folder, has_adapter, read_config
from xlmr_ray.checkpoint.load import LoadReport, load_tensors
from xlmr_ray.checkpoint.quantization import SCHEMES, make_int8_batch_invariant, scheme
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.batching import longest_first, next_batch
from xlmr_ray.engine.device import check_fp8, check_int8, device_and_dtype, to_host, token_budget
from xlmr_ray.engine.error_codes import NO_TOKENS, NON_FINITE, OUT_OF_MEMORY, not_finite
from xlmr_ray.engine.known import KnownSequences
from xlmr_ray.engine.last_layer import rows_read
from xlmr_ray.engine.memory import CutBudget, attempt, free
from xlmr_ray.engine.parts import BatchPart, part_of
from xlmr_ray.engine.passes import passes_of
from xlmr_ray.engine.repeats import Repeats
from xlmr_ray.engine.result_cache import KnownResults
from xlmr_ray.engine.result_rows import ResultRows
from xlmr_ray.engine.results import Results, TaskOutput, TaskResults, output_of
from xlmr_ray.engine.settings import AUTO, EngineSettings
from xlmr_ray.engine.token_range import out_of_range
from xlmr_ray.engine.unloaded import tie, unloaded
from xlmr_ray.errors import UserError
from xlmr_ray.model.batch_invariance import keep_batch_invariance
from xlmr_ray.model.encoder import Trace
from xlmr_ray.model.heads import LMHead
from xlmr_ray.model.linear import use_onednn
from xlmr_ray.model.lora import Change, Spans, adapt, adapter_spans
from xlmr_ray.model.packed_batch import PackedBatch, pack
from xlmr_ray.model.quantized.fp8 import eight_bit_floats
from xlmr_ray.model.quantized.int8 import eight_bits
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.encoded import ragged, targets_of
from xlmr_ray.tasks.task import EncoderTask, Task

log = logging.getLogger(__name__)

# CPU: 1,024 tokens stay in the caches; 2,048 were up to 9 % slower where others use these too, 512 always were.
MAX_TOKENS = {"cpu": 1024, "cuda": 16384}
# Batches whose results are on their way from the device while the next ones compute. More would only take memory: with
# vectors of tokens a shard's results are gigabytes.
IN_FLIGHT = 2
# What computes the encoder's matmuls in eight bits, once its weights are loaded.
MATMULS = {"int8": eight_bits, "fp8": eight_bit_floats}


@dataclass
class EngineStats:
    """Counters since the start, of what was computed. `padded` are tokens computed beyond the `tokens` of the
    sequences; `repeated` those of sequences that were not computed, as an equal one was; seconds are the wall clock's.
    """

    sequences: int = 0
    tokens: int = 0
    padded: int = 0
    repeated: int = 0
    batches: int = 0
    seconds: float = 0.0


@dataclass
class Engine:
    """An encoder with its tasks' heads on one device. Not thread-safe."""

    model: XLMRobertaModel
    tasks: Sequence[EncoderTask]
    heads: Sequence[nn.Module]
    device: torch.device
    max_tokens: int
    report: LoadReport | None = None
    stats: EngineStats = field(default_factory=EngineStats)
    memory: CutBudget = field(default_factory=CutBudget)
    adapters: Sequence[int | None] = ()  # the number of each head's adapter, where any has one
    spans: Spans = field(default_factory=Spans)
    known: KnownResults | None = None  # where results are looked for, under the name `known_as`, and left
    known_as: bytes = b""
    shapes: list[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.warm_up()

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """The same tasks with other options, which must not change what their heads are made of."""
        self.tasks = [task for task in tasks if isinstance(task, EncoderTask)]
        assert len(self.tasks) == len(self.heads)
        self.warm_up()

    def warm_up(self) -> None:
        """A first pass of one token, which also gives the shapes of results where there are no sequences."""
        kept = replace(self.stats)
        zero = np.zeros(1, np.int32)
        one = pack(zero, np.array([0, 1]), np.array([0]), self.model.config, targets=zero)
        parts = [BatchPart(task, head, 0, 1) for head, task in enumerate(self.tasks)]
        self.shapes = [tuple(output.shape[1:]) for output in self.compute(one, parts)]
        self.stats = kept

    @classmethod
    def load(
        cls,
        folder: Path,
        tasks: Sequence[EncoderTask],
        settings: EngineSettings = AUTO,
        *,
        head_folders: Sequence[Path] | None = None,
    ) -> "Engine":
        """Loads the encoder from a checkpoint's folder, and the heads of the tasks from it or from `head_folders`, one
        a task: checkpoints that share the encoder's weights, which is the caller's to know. Those with an adapter
        beside the encoder have their sequences go through that, too. Raises UserError for a setting or a checkpoint
        that does not fit.
        """
        where, wanted = device_and_dtype(settings.device, settings.dtype)
        quantization = settings.quantization
        places = list(head_folders or [folder] * len(tasks))
        if has_adapter(folder):
            folder = encoder_folder(folder) or folder
        config = XLMRobertaConfig.from_dict(read_config(folder))
        config.attn_implementation = settings.attn_implementation
        budget = token_budget(settings.max_tokens, where, MAX_TOKENS)
        parts = unloaded(config, folder, tasks, places)
        whole, heads = parts.whole, parts.heads
        matmuls = MATMULS.get(quantization or "")
        if quantization == "int8":
            check_int8(where, wanted)
        elif quantization == "fp8":
            check_fp8(where, wanted)
        elif quantization is not None and quantization not in SCHEMES:
            raise UserError(f"quantization {quantization!r} is none of {', '.join((*MATMULS, *SCHEMES))}")
        with_adapter = list(dict.fromkeys(place for place in places if has_adapter(place)))
        if with_adapter and (settings.compile or quantization is not None):
            what = "compile" if settings.compile else f"quantization {quantization}"
            raise UserError(f"{what}: not with adapters beside the encoder; merge one of them (merge: true)")
        if where.type == "cuda" and wanted is torch.float32:
            log.warning("dtype float32 on a GPU: no packed attention and no matrix units; auto is several times faster")
        how = None if quantization is None or matmuls else scheme(quantization, wanted)
        report = load_tensors(whole, folder, dtype=wanted, device=where, quantization=how)
        make_int8_batch_invariant(whole)
        for head in parts.joined:
            for name, _ in list(head.named_children()):
                head.add_module(name, whole.get_submodule(name))  # a layer that is quantized is another module now
        model = whole.get_submodule("roberta")
        assert isinstance(model, XLMRobertaModel)
        for head, place in parts.apart:
            for child in head.children():
                if isinstance(child, LMHead) and config.tie_word_embeddings:
                    child.decoder.register_parameter("weight", None)  # the encoder's, below
            load_tensors(head, place, dtype=torch.float32 if in_float32(head) else report.dtype, device=where)
            for child in head.children():
                tie(child, model)
        if report.dtype is not torch.float32 and report.quantization is None:
            for head in filter(in_float32, parts.joined):
                load_tensors(head, folder, dtype=torch.float32, device=where)
        model.encoder.fuse()
        if matmuls:
            matmuls(model.encoder)
        if where.type == "cpu":
            if settings.compile:
                log.warning("compile: left out on a CPU: compiled layers take torch's matmuls there, and are slower")
            use_onednn(model.encoder, prepack=True)
        elif settings.compile:
            model.encoder.compile_layers()
        spans = Spans()
        if with_adapter:
            adapt(model, [load_file(place / LORA) for place in with_adapter], spans)
            if where.type == "cpu":
                use_onednn(model, prepack=False)
        model.eval()
        for head in heads:
            head.eval().requires_grad_(False).to(where)
            use_onednn(head, prepack=False)  # a language model's last layer shares its weight with the embeddings
        numbers = [with_adapter.index(place) if has_adapter(place) else None for place in places]
        engine = cls(model, tasks, heads, where, budget, report, adapters=numbers if with_adapter else (), spans=spans)
        engine.keep_batch_invariance()
        return engine

    @classmethod
    def of(cls, model: Pretrained, tasks: Sequence[EncoderTask], *, max_tokens: int | str = "auto") -> "Engine":
        """A model in memory, whose weights are shared and not changed. Raises UserError where it lacks a task's
        head.
        """
        model.eval()
        computing = model
        if model.device.type == "cpu":
            computing = sharing_weights(model)
            use_onednn(computing, prepack=False)
        base = computing.base_model
        assert isinstance(base, XLMRobertaModel)
        heads = [task.head() for task in tasks]
        for index, (task, head) in enumerate(zip(tasks, heads, strict=True)):
            for name, child in list(head.named_children()):
                source = computing if hasattr(model, name) else base
                own = getattr(model if source is computing else base, name, None)
                if not any(p.is_meta for p in child.parameters()):
                    child.to(base.device)
                elif type(own) is not type(child):
                    raise UserError(f"{type(task).__name__}: the model is a {type(model).__name__}, without {name!r}")
                else:
                    setattr(head, name, getattr(source, name))
            if in_float32(head) and model.dtype is not torch.float32:
                heads[index] = head = copy.deepcopy(head).float()
            use_onednn(head, prepack=False)
        budget = token_budget(max_tokens, base.device, MAX_TOKENS)
        engine = cls(base, tasks, heads, base.device, budget, model.load_report)
        engine.keep_batch_invariance()
        return engine

    def keep_batch_invariance(self) -> None:
        """On the CPU; a GPU makes no such promise."""
        if self.device.type == "cpu":
            layers = self.model.encoder.layer
            heads = nn.ModuleList([*self.heads, *(one for one in self.model.modules() if isinstance(one, Change))])
            keep_batch_invariance(layers, heads, self.model.config.hidden_size, self.dtype)

    def adapter(self, head: int) -> int | None:
        """The number of the adapter that the sequences of a head go through, None for the encoder as it is."""
        return self.adapters[head] if self.adapters else None

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        return next(self.model.parameters()).dtype

    @property
    def encoder_config(self) -> XLMRobertaConfig:
        return self.model.config

    def outputs(self, encoded: Sequence[pa.Table]) -> list[TaskOutput]:
        """Each task's output for its encoded table."""
        results = self.results(encoded)
        return [output_of(*each) for each in zip(self.tasks, encoded, results, strict=True)]

    def output(self, index: int, encoded: pa.Table) -> TaskOutput:
        """The output of the task at this index, for its encoded table."""
        found = self.run(encoded["input_ids"], targets_of(encoded), tasks=[index])
        return output_of(self.tasks[index], encoded, TaskResults(found.raw[0], found.failed))

    def results(self, encoded: Sequence[pa.Table]) -> list[TaskResults]:
        """Each task's results for its encoded table. A sequence that several have is computed once."""
        of_adapter: dict[int | None, list[int]] = {}
        for index in range(len(encoded)):
            of_adapter.setdefault(self.adapter(index), []).append(index)
        out: dict[int, TaskResults] = {}
        passes = [(own, one) for own in of_adapter.values() for one in passes_of([encoded[index] for index in own])]
        for owns, one in passes:
            tasks = [owns[number] for number in one.tasks]
            found = self.run(one.input_ids, one.targets, tasks=tasks)
            if one.owners is None:
                out |= {index: TaskResults(raw, found.failed) for index, raw in zip(tasks, found.raw, strict=True)}
                continue
            _, splits = ragged(one.input_ids)
            self.stats.repeated += max(_repeated(np.diff(splits), owner) for owner in one.owners)
            for index, owner, raw in zip(tasks, one.owners, found.raw, strict=True):
                rows, _ = ResultRows.of(self.tasks[index].unit, splits, None).rows(owner)
                failed = {i: found.failed[n] for i, n in enumerate(owner.tolist()) if n in found.failed}
                out[index] = TaskResults(raw[rows], failed)
        return [out[index] for index in range(len(encoded))]

    def run(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray,
        targets: pa.ListArray | pa.ChunkedArray | None = None,
        *,
        tasks: Sequence[int] | None = None,
    ) -> Results:
        """Sequences of ids, `list<int32>`, through the encoder and the heads of the `tasks` (by index; None: all).
        These have one adapter, or none. Equal ones go through once, and those whose results are `known` do not.

        `targets` are lists of the same lengths, -100 where a token has none. When memory runs out the token budget is
        halved, grows back slowly, and the rest goes on; a sequence that does not fit by itself is in `failed`, as is
        one with a result that is not a number, or with a token that the model does not have.
        """
        heads = range(len(self.tasks)) if tasks is None else tasks
        ids, row_splits = ragged(input_ids)
        lengths = np.diff(row_splits)
        wanted: NDArray[np.int32] | None = None
        if targets is not None:
            wanted, target_splits = ragged(targets)
            if not np.array_equal(target_splits, row_splits):
                raise ValueError("targets: got lists of other lengths than those of input_ids")
        too_long = int(lengths.max(initial=0))
        if too_long > self.model.config.max_length:
            raise UserError(
                f"a sequence of {too_long} tokens, the model has positions for {self.model.config.max_length}"
            )
        start = time.perf_counter()
        rows_of_units = [ResultRows.of(self.tasks[head].unit, row_splits, wanted) for head in heads]
        raw = [
            np.full((rows.total, *self.shapes[head]), np.nan, np.float32)
            for head, rows in zip(heads, rows_of_units, strict=True)
        ]
        failed: dict[int, tuple[str, str]] = dict.fromkeys(
            np.flatnonzero(lengths == 0).tolist(), (NO_TOKENS, "the text has no tokens")
        )
        failed |= out_of_range(ids, row_splits, self.model.config.vocab_size)
        in_flight: deque[tuple[NDArray[np.int64], list[Tensor], torch.cuda.Event | None]] = deque()
        repeats = Repeats.of(ids, row_splits, wanted)
        order = longest_first(lengths)
        order = order[~np.isin(order, [*failed, *repeats.again])]
        known = None
        if self.known is not None:
            names = [self.known_as + b"/%d" % head for head in heads]
            known = KnownSequences.of(self.known, names, ids, row_splits, wanted, order, raw, rows_of_units)
            order = known.left
            self.stats.repeated += int(lengths[known.taken].sum())
        while len(order):
            chosen = next_batch(lengths, order, self.max_tokens)
            outputs = attempt(partial(self.compute_some, ids, row_splits, chosen, wanted, heads))
            if outputs is not None:
                in_flight.append((chosen, outputs, computed(self.device)))
            elif len(chosen) > 1:
                self.shrink(int(lengths[chosen].sum()))
                continue
            else:
                free(self.device)
                alone = int(chosen[0])
                failed[alone] = (OUT_OF_MEMORY, f"{lengths[alone]} tokens do not fit in the memory of {self.device}")
            order = order[len(chosen) :]
            while len(in_flight) > (IN_FLIGHT if len(order) else 0):
                which, outputs, event = in_flight.popleft()
                if event is not None:
                    event.synchronize()
                for results, rows_of, output in zip(raw, rows_of_units, outputs, strict=True):
                    values = output.numpy()
                    rows, owners = rows_of.rows(which)
                    results[rows] = values
                    finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))  # there may be no rows
                    for bad in np.unique(owners[~finite]).tolist():
                        failed[bad] = (NON_FINITE, not_finite(self.dtype))
        if known is not None:
            known.leave(list(failed))
        for results, rows_of in zip(raw, rows_of_units, strict=True):
            repeats.fill(results, rows_of)
        self.stats.repeated += int(lengths[repeats.again].sum())
        self.stats.seconds += time.perf_counter() - start
        return Results(raw, repeats.failed(failed))

    def compute_some(
        self,
        ids: NDArray[np.int32],
        row_splits: NDArray[np.int64],
        chosen: NDArray[np.int64],
        targets: NDArray[np.int32] | None,
        heads: Sequence[int],
    ) -> list[Tensor]:
        """The `chosen` sequences as one batch through the `heads`."""
        batch = pack(ids, row_splits, chosen, self.model.config, targets=targets)
        return self.compute(batch, [BatchPart(self.tasks[head], head, 0, len(chosen)) for head in heads])

    @torch.inference_mode()
    def compute(self, batch: PackedBatch, parts: Sequence[BatchPart]) -> list[Tensor]:
        """The results `(R, ...)` of each part of a batch, fp32 in the CPU's memory (on a GPU: once it is
        synchronized).
        """
        on_gpu = self.device.type == "cuda"
        there = batch.pin_memory().to(self.device) if on_gpu else batch
        if self.adapters:
            owners: list[int | None] = [None] * batch.sequences
            for part in parts:
                owners[part.first : part.first + part.count] = [self.adapter(part.head)] * part.count
            self.spans.now = adapter_spans(owners, [0, *accumulate(batch.lengths)])
        last, trace = self.encode(batch, there, [part.task for part in parts])
        self.spans.now = []
        outputs = []
        for part in parts:
            hidden, own = last, there
            if part.task.layers and trace.hidden_states is not None:
                hidden = torch.stack([trace.hidden_states[layer] for layer in part.task.layers])
            if hidden.dtype is not torch.float32 and in_float32(self.heads[part.head]):
                hidden = hidden.float()
            if part.count < batch.sequences:
                own, hidden = part_of(batch, hidden, part)
                own = own.pin_memory().to(self.device) if on_gpu else own
            outputs.append(to_host(part.task.forward(self.heads[part.head], hidden, own).float()))
        self.stats.batches += 1
        self.stats.sequences += batch.sequences
        self.stats.tokens += batch.tokens
        self.stats.padded += len(batch.input_ids) - batch.tokens
        self.max_tokens = self.memory.grown(self.max_tokens)
        return outputs

    def encode(self, batch: PackedBatch, there: PackedBatch, tasks: Sequence[EncoderTask]) -> tuple[Tensor, Trace]:
        """The last hidden states `(T, hidden)`, as far as the tasks read them, and all of them if one reads others. The
        batch is in the CPU's memory, and `there` on the model's device.
        """
        layers = any(task.layers for task in tasks)
        trace = Trace(hidden_states=[] if layers else None)
        # A layer's change is for all tokens of a span.
        rows = None if layers or self.spans.now else rows_read(batch, {task.reads for task in tasks})
        if rows is not None and self.device.type == "cuda":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        embedded = self.model.embeddings(there.input_ids, there.position_ids)
        return self.model.encoder(embedded, there.layout, trace, rows=rows), trace

    def synchronize(self) -> None:
        """Waits for the device, and so for the copies of results."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def shrink(self, tokens: int) -> None:
        """Cuts the budget after a batch of so many tokens did not fit. Not inside an `except` (see `attempt`)."""
        self.max_tokens = self.memory.cut(self.max_tokens, tokens)
        log.warning("out of memory with %d tokens in a batch: going on with at most %d", tokens, self.max_tokens)
        free(self.device)


def in_float32(head: nn.Module) -> bool:
    """Whether a head is computed in float32, whatever the encoder is: scores of 16 bits would often be equal where they
    are not. Not what is quantized, nor a last layer over the vocabulary, which is the larger part of its pass and has
    the encoder's weights; nor where there is nothing to compute.
    """
    plain = [parameter.is_floating_point() for parameter in head.parameters()]
    return bool(plain) and all(plain) and not any(isinstance(module, LMHead) for module in head.modules())


def _repeated(lengths: NDArray[np.int64], owners: NDArray[np.int64]) -> int:
    """Tokens of those of a task's sequences that another one of it stands for; `owners` of the distinct ones."""
    return int(lengths[owners].sum() - lengths[np.unique(owners)].sum())


def computed(device: torch.device) -> torch.cuda.Event | None:
    """What tells when all that was asked of a GPU so far is done; None for a CPU, which is done."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def sharing_weights(model: Pretrained) -> Pretrained:
    """A model of the same weights, in memory once: of what is replaced in the copy the original knows nothing."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    leaves = [m for m in model.modules() if not list(m.children()) and list(m.parameters(recurse=False))]
    shared |= {id(leaf): leaf for leaf in leaves if type(leaf) is not nn.Linear}  # quantized ones hold other tensors
    return copy.deepcopy(model, shared)
