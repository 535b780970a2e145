"""`text-generation`: what a causal checkpoint writes after a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.generation.config import GenerationConfig
from xlmr_ray.tasks.task import GenerationTask, at_least_one, check_choice, checked_options
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

NAME = "text-generation"
# What transformers' pipeline sets where neither the caller nor the checkpoint does.
USUAL = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7}
SETTINGS = (
    "max_new_tokens",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "num_return_sequences",
    "eos_token_id",
)
TEXT = pa.struct([("generated_text", pa.string()), ("tokens", pa.int32())])


@dataclass(frozen=True, kw_only=True)
class TextGeneration(GenerationTask):
    """What a causal checkpoint writes after a prompt. A document's random numbers come from `seed` and the prompt's
    tokens, so that its text is the same in any batch and at every try.

    Options of `GenerationConfig`, with its meaning and units (default: what the checkpoint's `generation_config.json`
    says, else as in transformers' pipeline):
    - `max_new_tokens` (256, or half of the model's positions where that is less), `min_new_tokens`.
    - `do_sample` (true), `temperature` (0.7), `top_k`, `top_p`, `min_p`.
    - `repetition_penalty`, `no_repeat_ngram_size`.
    - `num_beams`, `length_penalty`, `early_stopping`.
    - `num_return_sequences`, `eos_token_id`.

    Other options:
    - `stop_sequence`: a string or a list of them; the text ends with the first that it has (default: none).
    - `seed`: a whole number (default: 0).
    - `max_length`: tokens of a prompt and its text; of a prompt that leaves no room for `max_new_tokens` the end is
      kept, and flagged (default: what the checkpoint allows).
    - `return_full_text`: with the prompt before it (default: true).
    - `add_special_tokens`: around the prompt (default: true).
    - `prefix`: text put before the prompt (default: none).
    - `positions`: `generate` numbers them from 0, as transformers' `generate` does, `forward` from `pad_token_id + 1`,
      as they are in training (default: generate).

    Output: `generated_text`; `tokens`, the new ones, with the one that ends the text; `truncated`, where the prompt was
    cut; with `num_return_sequences` above 1 a list `texts` of the first two.
    """

    roles = ("text",)
    request_bounds: ClassVar[Mapping[str, int | str]] = {
        "max_new_tokens": "new_tokens",
        "num_beams": 8,
        "num_return_sequences": 8,
        "no_repeat_ngram_size": 1000,
        "stop_sequence": 16,
    }
    example_options: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 2, "min_new_tokens": 0}
    architectures = ("ForCausalLM",)

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_sequence: str | Sequence[str] | None = None
    seed: int = 0
    max_length: int | None = None
    return_full_text: bool = True
    add_special_tokens: bool = True
    prefix: str = ""
    positions: str = "generate"
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: Path = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> "TextGeneration":
        return cls(**checked_options(cls, NAME, options), config=config, folder=folder)

    def __post_init__(self) -> None:
        at_least_one(NAME, "max_length", self.max_length)
        check_choice(NAME, "positions", self.positions, ("generate", "forward"))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise UserError(f"task {NAME}: seed must be a whole number, got {self.seed!r}")
        if self.max_length is not None and self.max_length > self.room:
            raise UserError(
                f"task {NAME}: max_length {self.max_length} is more than the {self.room} tokens that the model has "
                "positions for"
            )
        if self.prompt_limit(self.room) < 1:
            raise UserError(
                f"task {NAME}: max_new_tokens {self.settings.max_new_tokens} leaves no room for a prompt: prompt and "
                f"text have {self.max_length or self.room} tokens"
            )

    @property
    def schema(self) -> pa.Schema:
        several = self.settings.num_return_sequences > 1
        texts = [("texts", pa.list_(TEXT))] if several else list(zip(TEXT.names, (f.type for f in TEXT), strict=True))
        return pa.schema([*texts, ("truncated", pa.bool_())])

    @property
    def start(self) -> int:
        """The first token's position."""
        return 0 if self.positions == "generate" else self.config.first_position

    @property
    def room(self) -> int:
        """The most tokens that a prompt and its text can have; the last of them needs no position."""
        return self.config.max_position_embeddings - self.start + 1

    def longest_sequence(self, config: XLMRobertaConfig) -> int:
        return self.room

    @cached_property
    def settings(self) -> GenerationConfig:
        """The settings of `generate`."""
        own = GenerationConfig.from_pretrained(self.folder) or GenerationConfig.of_model(self.config)
        plain = GenerationConfig()
        usual = {**USUAL, "max_new_tokens": min(256, (self.max_length or self.room) // 2)}
        unset = {name: value for name, value in usual.items() if getattr(own, name) == getattr(plain, name)}
        asked = {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}
        if self.stop_sequence is not None:
            asked["stop_strings"] = self.stop_sequence
        # Lengths are set here only: a file's `max_length` would count the prompt, which is cut to fit.
        return own.having({"max_length": None, **unset, **asked})

    def prompt_limit(self, model_max_length: int) -> int:
        """The most tokens of a prompt, for a tokenizer that says so many of both."""
        total = min(self.max_length or self.room, model_max_length)
        return total - (self.settings.max_new_tokens or 0)

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """A row a document: `input_ids`, `truncated`, and the `prompt` where it is to be returned."""
        texts = [self.prefix + text for text in columns["text"].to_pylist()]
        limit = self.prompt_limit(tokenizer.model_max_length)
        if limit < 1:
            raise UserError(
                f"task {NAME}: max_new_tokens {self.settings.max_new_tokens} leaves no room for a prompt: the "
                f"tokenizer takes {tokenizer.model_max_length} tokens"
            )
        ids = tokenizer(texts, add_special_tokens=self.add_special_tokens, verbose=False)["input_ids"] if texts else []
        ids = [row or [self.settings.bos_token_id or tokenizer.bos_token_id] for row in ids]
        table = pa.table(
            {
                "input_ids": pa.array([row[-limit:] for row in ids], pa.list_(pa.int32())),
                "truncated": pa.array([len(row) > limit for row in ids], pa.bool_()),
            }
        )
        return table.append_column("prompt", columns["text"]) if self.return_full_text else table

    def postprocess(
        self, texts: Sequence[Sequence[Sequence[int]]], encoded: pa.Table, tokenizer: XLMRobertaTokenizer
    ) -> pa.Table:
        """The new ids of each document's texts to the output table."""
        prompts = encoded["prompt"].to_pylist() if self.return_full_text else [""] * len(texts)
        rows = [
            [
                {"generated_text": prompt + tokenizer.decode(ids, skip_special_tokens=True), "tokens": len(ids)}
                for ids in several
            ]
            for several, prompt in zip(texts, prompts, strict=True)
        ]
        if self.settings.num_return_sequences > 1:
            return pa.table([pa.array(rows, pa.list_(TEXT)), encoded["truncated"]], schema=self.schema)
        columns = [pa.array([row[0][part.name] for row in rows], part.type) for part in TEXT]
        return pa.table([*columns, encoded["truncated"]], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """A list of `{"generated_text"}` a document."""
        if self.settings.num_return_sequences > 1:
            several = table["texts"].to_pylist()
            return [[{"generated_text": text["generated_text"]} for text in texts] for texts in several]
        return [[{"generated_text": text}] for text in table["generated_text"].to_pylist()]
