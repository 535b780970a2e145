"""`embedding`: one vector a text, as the checkpoint's sentence-transformers folder says or as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.checkpoint.sentence import Dense, SentenceConfig, check_widths, read_sentence_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.long_documents import by_document, check_long, encode_documents, length_columns, length_fields
from xlmr_ray.tasks.pooling import POOLINGS, pool
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.vector_precision import (
    BYTES,
    UNMEASURED,
    Ranges,
    as_column,
    check_precision,
    read_ranges,
    stored_type,
)
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "embedding"


@dataclass(frozen=True, kw_only=True)
class Embedding(EncoderTask):
    """A vector a text, pooled from the tokens' last hidden states.

    Options (the folder is a sentence-transformers folder, where the checkpoint is one):
    - `pooling`: `cls`, `mean`, `max` or `mean_sqrt_len` (default: the folder's, else mean).
    - `normalize`: vectors of length 1 (default: as the folder says, else false).
    - `prompt`: text put before every document (default: the folder's default prompt, else none).
    - `prompt_name`: one of the prompts instead (default: none).
    - `prompts`: texts by name, beside or over the folder's prompts (default: none).
    - `dimensions`: the first so many numbers of a vector, normalized again where vectors are (default: what the folder
      says, else all).
    - `precision`: of the stored numbers, `float32`, `float16`, `int8`, `uint8`, `binary` or `ubinary` (default:
      float32).
    - `ranges`: for `int8` and `uint8`, the smallest and largest number of each dimension in a sample of vectors of the
      same kind, normalized or not: the path or URL of a JSON file or of a job's output, or `[min, max, normalized]`
      (default: a job measures them on its own documents).
    - `max_length`: tokens of a sequence (default: what the checkpoint allows).
    - `long`: longer texts are `cut` and flagged, or read in `windows`, whose vectors are averaged, weighted by the
      tokens that each adds, before they are normalized (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    Output: `embedding`, a fixed-size list of `width` numbers; `tokens`, `truncated`, and `windows` where texts are read
    in windows.
    """

    roles = ("text",)
    architectures = ("Model",)
    fixed_options = ("ranges", "prompts")

    pooling: str | None = None
    normalize: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    precision: str = "float32"
    prompts: Mapping[str, str] | None = field(default=None, metadata={"added": True})
    ranges: Ranges | None = field(default=None, metadata={"added": True})
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def unmeasured(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        measures = options.get("precision") in BYTES and options.get("ranges") is None
        return {"ranges": UNMEASURED} if measures else {}

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> Embedding:
        known = dict(checked_options(cls, NAME, options))
        known["ranges"] = read_ranges(NAME, known.get("ranges"))
        return cls(**known, config=config, folder=read_sentence_config(folder))

    def __post_init__(self) -> None:
        check_choice(NAME, "pooling", self.pooling, (None, *POOLINGS))
        check_choice(NAME, "normalize", self.normalize, (None, True, False))
        at_least_one(NAME, "dimensions", self.dimensions)
        at_least_one(NAME, "max_length", self.max_length)
        check_long(NAME, self.long, self.stride)
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError(f"task {NAME}: give prompt or prompt_name, not both")
        check_widths(self.dense, self.config.hidden_size)
        check_prompts(NAME, self.prompts)
        known = self.known_prompts
        if self.prompt_name is not None and self.prompt_name not in known:
            names = ", ".join(map(repr, known)) or "none"
            raise UserError(f"task {NAME}: prompt_name {self.prompt_name!r} is none of the prompts ({names})")
        if self.folder is not None and not self.folder.include_prompt and self.prefix:
            raise UserError(f"task {NAME}: the folder leaves the prompt out of the pooling, which is not supported")
        if self.dimensions is not None and self.dimensions > self.full_width:
            raise UserError(f"task {NAME}: dimensions {self.dimensions} is more than the model's {self.full_width}")
        check_precision(NAME, self.precision, self.ranges, self.width, self.normalized)

    @property
    def prefix(self) -> str:
        """The text put before every document."""
        if self.prompt is not None:
            return self.prompt
        name = self.prompt_name or (None if self.folder is None else self.folder.default_prompt_name)
        return "" if name is None else self.known_prompts[name]

    @property
    def dense(self) -> tuple[Dense, ...]:
        return () if self.folder is None else self.folder.dense

    @property
    def full_width(self) -> int:
        return self.dense[-1].out_features if self.dense else self.config.hidden_size

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        of_folder = None if self.folder is None else self.folder.truncate_dim
        return self.dimensions or min(of_folder or self.full_width, self.full_width)

    @property
    def result_width(self) -> int:
        return self.full_width if self.long == "windows" else self.width

    @property
    def vector_width(self) -> int:
        return self.width

    @property
    def known_prompts(self) -> Mapping[str, str]:
        return {**({} if self.folder is None else self.folder.prompts), **(self.prompts or {})}

    @property
    def pooled_by(self) -> str:
        """The pooling in force."""
        return self.pooling or (self.folder.pooling if self.folder else "mean")

    @property
    def normalized(self) -> bool:
        """Whether vectors are brought to length 1."""
        return (self.folder is not None and self.folder.normalize) if self.normalize is None else self.normalize

    @property
    def reads(self) -> str:
        return "first" if self.pooled_by == "cls" else "all"

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("embedding", stored_type(self.precision, self.width)), *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        texts = columns["text"]
        if self.prefix:
            texts = pc.binary_join_element_wise(self.prefix, texts, "")
        tokenizer = sentence_tokenizer(self.folder, tokenizer)
        limit = sentence_limit(NAME, self.max_length, self.folder, self.config, tokenizer)
        return encode_documents(NAME, texts, None, tokenizer, max_length=limit, long=self.long, stride=self.stride)

    def head(self) -> nn.Module:
        from torch import nn

        return nn.Sequential(*(module for dense in self.dense for module in dense_modules(dense)))

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors `(N, width)`, in fp32; those of windows `(N, full_width)`, not normalized yet."""
        from xlmr_ray.model.batch_invariance import pad_rows

        pooled = pool(self.pooled_by, hidden, batch)
        if self.dense:
            parameter = next(head.parameters())
            pooled = head(pad_rows(pooled).to(parameter.dtype))[: batch.sequences].float()
        return pooled if self.long == "windows" else self.finished(pooled)

    def finished(self, pooled: Tensor) -> Tensor:
        """Vectors `(N, full_width)` to those that are stored, `(N, width)`.

        As in sentence-transformers, the folder cuts what it has normalized, and who asks for dimensions or for
        normalized vectors gets them normalized after that.
        """
        from torch.nn import functional as F

        if not self.normalized:
            return pooled[:, : self.width]
        cut = F.normalize(pooled, dim=-1)[:, : self.width]
        again = self.width < self.full_width and (self.dimensions is not None or self.normalize is True)
        return F.normalize(pooled[:, : self.width], dim=-1) if again else cut

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        numbers = raw
        if self.long == "windows":
            import torch

            means = torch.from_numpy(by_document(raw, self.long, encoded).astype(np.float32))
            numbers = self.finished(means).numpy()
        vectors = as_column(numbers, self.precision, self.ranges)
        return pa.table([vectors, *length_columns(self.long, encoded)], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        vectors = table["embedding"].combine_chunks()
        return list(vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.type.list_size))


def dense_modules(dense: Dense) -> tuple[nn.Module, nn.Module]:
    """A dense layer of a sentence-transformers folder, with its weights."""
    from torch import nn

    weight, bias = dense.tensors()
    linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear, getattr(nn, dense.activation)()


def check_prompts(task: str, prompts: object) -> None:
    """Raises UserError where prompts are given and are no texts by name."""
    if prompts is None:
        return
    texts = isinstance(prompts, Mapping) and all(isinstance(one, str) for pair in prompts.items() for one in pair)
    if not texts:
        raise UserError(f'task {task}: prompts must be texts by name, such as {{"query": "query: "}}')
