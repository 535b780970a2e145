"""Prompts in, texts out: for tasks that need the whole model many times rather than its hidden states once."""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.batching import longest_first
from xlmr_ray.engine.device import device_and_dtype, token_budget
from xlmr_ray.engine.engine import EngineStats
from xlmr_ray.engine.error_codes import NON_FINITE, OUT_OF_MEMORY
from xlmr_ray.engine.memory import CutBudget, attempt, free
from xlmr_ray.engine.repeats import Repeats
from xlmr_ray.engine.results import TaskOutput
from xlmr_ray.engine.settings import AUTO, EngineSettings
from xlmr_ray.engine.token_range import out_of_range
from xlmr_ray.errors import UserError
from xlmr_ray.model.generation.generate import generate
from xlmr_ray.model.generation.scores import completes
from xlmr_ray.model.linear import use_onednn
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForCausalLM, XLMRobertaModel
from xlmr_ray.tasks.encoded import ragged
from xlmr_ray.tasks.task import GenerationTask, Task
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

log = logging.getLogger(__name__)

# By memory: the keys and values of a token are 73,728 bytes in the base model (12 layers of 768 numbers, twice, in
# fp32), so that a batch on the CPU has 0.6 GB of them, and one on a GPU 2.4 GB in half precision.
MAX_TOKENS = {"cpu": 8192, "cuda": 65536}


class Unwanted(Exception):
    """Nobody waits for the text any more."""


@dataclass
class Generator:
    """A causal model on one device, and the task that it writes for. Not thread-safe.

    Prompts of one length make a batch: nothing is padded, and random numbers are drawn a document at a time, from the
    seed and the prompt. So a text does not depend on its neighbours, but for the last bits of its logits, which a
    matmul of another height may round otherwise: where two tokens are that near, another may win.
    """

    model: XLMRobertaForCausalLM
    task: GenerationTask
    tokenizer: XLMRobertaTokenizer
    max_tokens: int
    stats: EngineStats = field(default_factory=EngineStats)
    memory: CutBudget = field(default_factory=CutBudget)

    @classmethod
    def load(
        cls,
        folder: Path,
        task: GenerationTask,
        settings: EngineSettings = AUTO,
        *,
        tokenizer: XLMRobertaTokenizer | None = None,
    ) -> "Generator":
        """From a checkpoint's folder. `max_tokens` are a batch's, prompts and texts. Raises UserError for a checkpoint
        without a language modelling head.
        """
        if settings.quantization is not None:
            raise UserError(f"quantization {settings.quantization}: tasks that write text do not take it")
        where, wanted = device_and_dtype(settings.device, settings.dtype)
        attention = settings.attn_implementation
        with warnings.catch_warnings():
            # Missing weights are an error here.
            warnings.filterwarnings("ignore", ".*made anew")
            model = XLMRobertaForCausalLM.from_pretrained(
                folder,
                dtype=wanted,
                device=where,
                attn_implementation=None if attention == "auto" else attention,
            )
        missing = model.load_report.missing if model.load_report else []
        if missing:
            raise UserError(f"{folder}: no weights for {', '.join(missing)}: text-generation wants a causal checkpoint")
        base = model.base_model
        assert isinstance(base, XLMRobertaModel)
        base.encoder.fuse()
        use_onednn(base.encoder, prepack=True)
        tokenizer = tokenizer or XLMRobertaTokenizer.from_pretrained(folder)
        return cls.of(model, task, tokenizer, max_tokens=settings.max_tokens)

    @classmethod
    def of(
        cls,
        model: Pretrained,
        task: GenerationTask,
        tokenizer: XLMRobertaTokenizer,
        *,
        max_tokens: int | str = "auto",
    ) -> "Generator":
        """A model in memory. Raises UserError for one that is not causal."""
        if not isinstance(model, XLMRobertaForCausalLM):
            raise UserError(f"text-generation: got a {type(model).__name__}, expected an XLMRobertaForCausalLM")
        return cls(model.eval(), task, tokenizer, token_budget(max_tokens, model.device, MAX_TOKENS))

    @property
    def tasks(self) -> Sequence[Task]:
        """The one that it generates for."""
        return [self.task]

    def set_tasks(self, tasks: Sequence[Task]) -> None:
        """The same task with other options."""
        (task,) = tasks
        assert isinstance(task, GenerationTask)
        self.task = task

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def encoder_config(self) -> XLMRobertaConfig | None:
        """None: a text takes many passes, whose operations are not counted by its tokens."""
        return None

    def outputs(self, encoded: Sequence[pa.Table]) -> list[TaskOutput]:
        """The task's output for its one encoded table."""
        return [self.run(table) for table in encoded]

    def output(self, index: int, encoded: pa.Table) -> TaskOutput:
        """The same for the task at this index, of which there is one."""
        return self.run(encoded)

    def run(self, encoded: pa.Table, wanted: Callable[[], bool] = lambda: True) -> TaskOutput:
        """The task's output for its encoded table; a prompt that is there twice is written for once, as its random
        numbers are the same. When memory runs out the budget is halved, and grows back slowly; a
        document that does not fit by itself has failed, as has one whose scores are no numbers, or whose prompt has a
        token that the model does not have.

        Raises Unwanted as soon as the texts are not `wanted` any more, which is asked before every token.
        """
        began = time.perf_counter()
        ids, row_splits = ragged(encoded["input_ids"])
        lengths = np.diff(row_splits)
        prompts = [ids[start:end] for start, end in pairwise(row_splits)]
        texts: list[list[list[int]] | None] = [None] * len(prompts)
        failed = out_of_range(ids, row_splits, self.model.config.vocab_size)
        repeats = Repeats.of(ids, row_splits)
        left_out = {*failed, *repeats.again.tolist()}
        order = [i for i in longest_first(lengths).tolist() if i not in left_out]
        for length, group in groupby(order, key=lambda i: int(lengths[i])):
            rest = list(group)
            while rest:
                chosen = rest[: self.rows(length)]
                found = attempt(partial(self.write, [prompts[i] for i in chosen], wanted))
                if found is not None:
                    self.max_tokens = self.memory.grown(self.max_tokens)
                elif len(chosen) > 1:
                    self.shrink(length, len(chosen))
                    continue
                else:
                    free(self.model.device)
                    failed[chosen[0]] = (
                        OUT_OF_MEMORY,
                        f"a prompt of {length} tokens and its text do not fit in the memory of {self.model.device}",
                    )
                    found = []
                for i, text in zip(chosen, found, strict=False):
                    texts[i] = text
                    if text is None:
                        failed[i] = (NON_FINITE, "the model's scores hold NaN or infinity")
                rest = rest[len(chosen) :]
        texts = [texts[first] for first in repeats.first]
        failed = repeats.failed(failed)
        self.stats.repeated += int(lengths[repeats.again].sum())
        self.stats.seconds += time.perf_counter() - began
        done = {i: text for i, text in enumerate(texts) if text is not None}
        left = encoded.take(pa.array(list(done), pa.int64()))
        table = self.task.postprocess(list(done.values()), left, self.tokenizer)
        return TaskOutput(table, failed)

    def tokens(self, length: int) -> int:
        """What a document with a prompt of that length takes of the budget: the cache of all its beams."""
        return (length + (self.task.settings.max_new_tokens or 0)) * self.task.beside

    def rows(self, length: int) -> int:
        """Documents in a batch."""
        return max(1, self.max_tokens // self.tokens(length))

    def shrink(self, length: int, rows: int) -> None:
        """Cuts the budget after a batch of so many documents did not fit. Not inside an `except`."""
        self.max_tokens = self.memory.cut(self.max_tokens, rows * self.tokens(length))
        log.warning("out of memory with %d prompts of %d tokens: going on with fewer", rows, length)
        free(self.model.device)

    def write(self, prompts: Sequence[NDArray[np.int32]], wanted: Callable[[], bool]) -> list[list[list[int]] | None]:
        """The new ids of each text of each prompt, all of one length; None where scores are no numbers."""
        settings, device = self.task.settings, self.model.device
        ids = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(device)
        length = ids.shape[1]
        each = settings.num_return_sequences
        draws = 1 if settings.num_beams > 1 else each
        generators = [generator(self.task.seed, prompt, k, device) for prompt in prompts for k in range(draws)]
        bad = torch.zeros(len(prompts) * max(settings.num_beams, each), dtype=torch.bool, device=device)

        def numbers(so_far: Tensor, scores: Tensor) -> Tensor:
            if not wanted():
                raise Unwanted
            # A row without numbers would stop the drawing for all.
            wrong = ~(scores < torch.inf).all(1)
            bad.logical_or_(wrong)
            return torch.where(wrong[:, None], 0.0, scores)

        text = generate(
            self.model,
            ids,
            torch.ones_like(ids),
            position_ids=torch.arange(self.task.start, self.task.start + length, device=device)[None],
            logits_processor=[numbers],
            tokenizer=self.tokenizer,
            generator=generators if settings.do_sample else None,
            **vars(settings),  # all of them, so that nothing of the model's own is in force
        )[:, length:].view(len(prompts), each, -1)
        out: list[list[list[int]] | None] = [
            None if wrong else [self.ended(prompt.tolist(), one) for one in several]
            for wrong, prompt, several in zip(
                bad.view(len(prompts), -1).any(1).tolist(), prompts, text.tolist(), strict=True
            )
        ]
        self.stats.sequences += len(prompts)
        self.stats.batches += 1
        self.stats.tokens += sum(length + len(one) for several in out for one in several or [])
        self.stats.padded += text.numel() - sum(len(one) for several in out for one in several or [])
        return out

    def ended(self, prompt: list[int], ids: list[int]) -> list[int]:
        """A text up to its end, without what fills it up behind, or what was written while others went on."""
        ends, strings = set(self.task.settings.eos), self.task.stop_strings
        pieces = self.tokenizer.convert_ids_to_tokens([*prompt, *ids]) if strings else []
        for end, token in enumerate(ids, 1):
            if token in ends or (strings and completes(pieces[: len(prompt) + end], strings)):
                return ids[:end]
        return ids


def generator(seed: int, prompt: NDArray[np.int32], text: int, device: torch.device) -> torch.Generator:
    """The source of random numbers of a prompt's text: of the same seed and prompt the same, wherever it comes."""
    digest = blake2b(f"{seed} {text} ".encode() + prompt.astype("<i4").tobytes(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
