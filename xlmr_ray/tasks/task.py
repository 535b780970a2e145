"""What a task is: text columns to sequences, the model's results to an output table, and all that serving, planning
and limits need to know of it. Each task says it in its own class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.model.ignored import IGNORED
from xlmr_ray.tasks.encoded import lengths, ragged, targets_of
from xlmr_ray.text.nearest import nearest_or_all
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch


class Task(ABC):
    """A task bound to a checkpoint: a frozen dataclass whose fields are the options, and what it was bound to.

    An *encoded* table has a row a sequence: `input_ids: list<int32>`; `targets: list<int32>` of the same lengths, -100
    where a token has none, if the task reads any; `document: int32`, the row of `prepare`'s columns that the sequence
    is of, ascending, if documents may have several; and what the output is made with.

    What is a property here may be a plain class attribute of a task. The attributes with a default:

    - `list_roles`: those of `roles` of which a document has a list of texts, which `prepare` reads as JSON.
    - `span_roles`: those of which a document has a list of [start, end], which `prepare` reads as JSON.
    - `optional_roles`: roles that are read where an option is set, with the option's name.
    - `fixed_options`: those that only the service's settings set, not a request: files of weights, for example.
    - `request_bounds`: options of which a request may ask for no more than a number, or than the service's limit of
      that name; of a list it is the length.
    - `stride_option`, `length_option`: what the options for the tokens that windows share, and for a window's length,
      are called, where the task has them.
    - `example_options`: options that the task cannot do without, or that make its `example` quick.
    - `positional_option`: the option that `pipeline()` takes as its second argument, too.
    - `always_lists`: of one text `pipeline()` gives a list of one answer; `unwraps_lists_of_one`: of a list of one text
      it gives the answer and no list. So transformers does it.
    - `architectures`: the ends of the architectures' names (`ForMaskedLM`) whose checkpoints are served for the task
      where none is named; `default_order`: where it stands among the tasks of one checkpoint then.
    """

    list_roles: ClassVar[tuple[str, ...]] = ()
    span_roles: ClassVar[tuple[str, ...]] = ()
    optional_roles: ClassVar[Mapping[str, str]] = {}
    fixed_options: ClassVar[tuple[str, ...]] = ()
    request_bounds: ClassVar[Mapping[str, int | str]] = {}
    stride_option: ClassVar[str] = "stride"
    length_option: ClassVar[str] = "max_length"
    example_options: ClassVar[Mapping[str, Any]] = {}
    positional_option: ClassVar[str | None] = None
    always_lists: ClassVar[bool] = False
    unwraps_lists_of_one: ClassVar[bool] = False
    architectures: ClassVar[tuple[str, ...]] = ()
    default_order: ClassVar[int] = 0

    @classmethod
    def possible_roles(cls) -> tuple[str, ...]:
        """The roles that it reads with some options or others. To be defined where `roles` is a property with others
        than `text` and the `optional_roles`.
        """
        always = cls.roles if isinstance(cls.roles, tuple) else ()
        return (*always, *cls.optional_roles)

    @classmethod
    def is_default(cls, architecture: str, config: XLMRobertaConfig) -> bool:
        """Whether a checkpoint of this architecture (`ForMaskedLM`) is served for the task where none is named."""
        return architecture in cls.architectures

    @classmethod
    @abstractmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> Self:
        """The task for a checkpoint. Raises UserError for options that it does not have or that do not fit."""

    @classmethod
    def unmeasured(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of a job's options, those that its run measures on a sample of its documents, with a value until then."""
        return {}

    @property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """The text columns that `prepare` reads."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns of the output, fixed by the task's options and the checkpoint."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files with weights that the task reads beside those of the checkpoint: they count for a run's identity."""
        return ()

    @property
    def expands(self) -> bool:
        """Whether a text may become many times its tokens, so that its characters are limited, too."""
        return False

    @property
    def output_labels(self) -> Sequence[str] | None:
        """The checkpoint's labels, where the output names some of them."""
        return None

    @property
    def vector_width(self) -> int | None:
        """Numbers of a vector of the output; None where it is of something else."""
        return None

    @property
    def pooled_by(self) -> str | None:
        """The pooling that makes one vector of a text; None where the output is something else."""
        return None

    @property
    def known_prompts(self) -> Mapping[str, str] | None:
        """The prompts that the option `prompt_name` takes, by name; None for a task without them."""
        return None

    def example(self, mask_token: str) -> dict[str, Any]:
        """A document to warm up with, by role: a text, or a list of texts."""
        return dict.fromkeys(self.roles, "a")

    def sequences(self, columns: Mapping[str, Sequence[Any]]) -> int:
        """How many sequences these documents become at least, by role; known before they are tokenized."""
        return len(columns[self.roles[0]])

    def longest_sequence(self, config: XLMRobertaConfig) -> int:
        """The most tokens that a sequence may have."""
        return config.max_length

    def results(self, encoded: pa.Table) -> int:
        """Numbers that the model gives for an encoded table, to be held in memory."""
        return 0

    def read_with(self, tokenizer: XLMRobertaTokenizer) -> None:  # noqa: B027 (nothing to do, mostly)
        """Reads the options that stand for tokens, where there are such. To be called before `forward` where the
        tokenizer is not the folder's as it is. Raises UserError for those that it has no tokens for.
        """

    @abstractmethod
    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """Text columns (one row a document, no nulls) to the encoded table. Runs on a CPU."""

    def computed_tokens(self, encoded: pa.Table) -> int:
        """Tokens that it takes to compute an encoded table."""
        return int(lengths(encoded).sum())

    @abstractmethod
    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """The output table as transformers' pipeline of this name returns it, one item a document. Where that repeats
        the text, it is taken from the `columns` that `prepare` read, and left out without them.
        """


class EncoderTask(Task):
    """A task of a head on the encoder's hidden states: one pass of the encoder serves several of them."""

    @property
    def unit(self) -> str:
        """What `forward` gives a result for: each `sequence`, each `token`, or each token with a `target`."""
        return "sequence"

    @property
    def reads(self) -> str:
        """Of which tokens `forward` reads the hidden states: the `first` of each sequence, those with a `target`, or
        `all`. Of the others the last layer need not give any: they may be zeros.
        """
        return "all"

    @property
    def layers(self) -> tuple[int, ...]:
        """The hidden states that `forward` reads, 0 for the embeddings', negative ones from the end; () for the last
        one, without an axis of layers.
        """
        return ()

    @property
    def result_width(self) -> int:
        """Numbers that `forward` gives for a unit."""
        return 1

    def results(self, encoded: pa.Table) -> int:
        targets = targets_of(encoded)
        units: int = encoded.num_rows
        if self.unit == "token":
            units = int(lengths(encoded).sum())
        elif self.unit == "target" and targets is not None:
            units = int(np.count_nonzero(ragged(targets)[0] != IGNORED))
        return units * self.result_width

    @abstractmethod
    def head(self) -> nn.Module:
        """The modules on the encoder, named as in the checkpoint: on the meta device to be filled from it, or with
        their weights.
        """

    @abstractmethod
    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Hidden states of a packed batch, `(T, hidden)`, or `(layers, T, hidden)` where `layers` are named, to a
        result a unit `(R, ...)`, on the model's device. A result may not depend on the rest of the batch. Where the
        encoder is of 16 bits, `hidden` and the head are float32, but for a head over the vocabulary.
        """

    @abstractmethod
    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        """The results `(R, ...)` of all units of an encoded table, in its order, to the output table, one row a
        document. Runs on a CPU.
        """


class GenerationTask(Task):
    """A task whose output is text that a causal model writes after each document's prompt."""

    @property
    @abstractmethod
    def settings(self) -> GenerationConfig:
        """Those of `generate`, complete: nothing of the model's own is in force."""

    @property
    @abstractmethod
    def start(self) -> int:
        """The first token's position."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of the random numbers that are drawn for a prompt."""

    @property
    def stop_strings(self) -> list[str]:
        """What ends a text by being in it."""
        strings = self.settings.stop_strings or []
        return [strings] if isinstance(strings, str) else list(strings)

    @property
    def beside(self) -> int:
        """Texts that are in memory for each prompt: beams or samples."""
        return max(self.settings.num_beams, self.settings.num_return_sequences)

    def computed_tokens(self, encoded: pa.Table) -> int:
        """Prompts, with all that may be written after them, of every text that is written beside another."""
        most = self.settings.max_new_tokens or 0
        each: int = super().computed_tokens(encoded) + encoded.num_rows * most
        return each * self.beside

    @abstractmethod
    def postprocess(
        self, texts: Sequence[Sequence[Sequence[int]]], encoded: pa.Table, tokenizer: XLMRobertaTokenizer
    ) -> pa.Table:
        """The new ids of each document's texts to the output table, one row a document."""


def option_fields(task: Task | type[Task]) -> list[Field[Any]]:
    """The options of a task, or of its class, as the fields of its dataclass."""
    return [one for one in fields(cast(Any, task)) if one.init and one.metadata.get("option", True)]


def checked_options(cls: type[Task], task: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, if the dataclass has a public field for each. Raises UserError that names the nearest one."""
    known = [one.name for one in option_fields(cls)]
    for name in options:
        if name not in known:
            raise UserError(f"task {task}: no option {name!r}{nearest_or_all(name, known, 'it has')}")
    return options


def check_choice(task: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises UserError where the option's value is none of those allowed."""
    if value not in allowed:
        raise UserError(f"task {task}: {name} {value!r} is none of {', '.join(map(str, allowed))}")


def at_least_one(task: str, name: str, value: object) -> None:
    """Raises UserError where the option is set and no whole number from 1 on."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"task {task}: {name} must be a whole number from 1 on, got {value!r}")
