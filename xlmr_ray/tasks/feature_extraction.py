"""`feature-extraction`: the hidden states of chosen layers, a vector a token or a pooled one a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import length_limit, lengths, whole_documents
from xlmr_ray.tasks.pooling import POOLINGS, pool
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "feature-extraction"


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(EncoderTask):
    """Hidden states of chosen layers: a vector a token, special ones too, or a pooled one a text.

    Options:
    - `layers`: the hidden states to give, 0 for the embeddings' and 1 on for the layers', negative ones from the end;
      those of several are put one after another in a vector, in the order named (default: [-1]).
    - `pooling`: `cls`, `mean`, `max` or `mean_sqrt_len` (default: none, a vector a token).
    - `precision`: of the stored numbers, `float32` or `float16` (default: float32).
    - `max_length`: tokens of a sequence; longer texts are cut and flagged (default: what the checkpoint allows).
    - `return_tensors`: tensors instead of lists from `pipeline()` (default: false).

    Output: `features`, a fixed-size list of `width` numbers, and without pooling a list of those with the `input_ids`
    of their tokens; `tokens`, `truncated`. A million tokens of 768 numbers take 3 GB in memory.
    """

    roles = ("text",)
    architectures = ("Model",)
    default_order = 2
    request_bounds: ClassVar[Mapping[str, int | str]] = {"layers": 64}

    layers: tuple[int, ...] = (-1,)
    pooling: str | None = None
    precision: str = "float32"
    max_length: int | None = None
    return_tensors: bool = False
    config: XLMRobertaConfig = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> FeatureExtraction:
        given = dict(checked_options(cls, NAME, options))
        if isinstance(given.get("layers"), list):
            given["layers"] = tuple(given["layers"])
        return cls(**given, config=config)

    def __post_init__(self) -> None:
        last = self.config.num_hidden_layers
        if not isinstance(self.layers, tuple) or not self.layers:
            raise UserError(f"task {NAME}: layers must be a list of numbers, got {self.layers!r}")
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool) or not -last - 1 <= layer <= last:
                raise UserError(
                    f"task {NAME}: layers has {layer!r}, the model has 0 (embeddings) to {last}, or -1 to {-last - 1}"
                )
        check_choice(NAME, "pooling", self.pooling, (None, *POOLINGS))
        check_choice(NAME, "precision", self.precision, ("float32", "float16"))
        at_least_one(NAME, "max_length", self.max_length)
        check_choice(NAME, "return_tensors", self.return_tensors, (True, False))

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.config.hidden_size * len(self.layers)

    @property
    def unit(self) -> str:
        return "token" if self.pooling is None else "sequence"

    @property
    def result_width(self) -> int:
        return self.width

    @property
    def schema(self) -> pa.Schema:
        vector = pa.list_(pa.float32() if self.precision == "float32" else pa.float16(), self.width)
        features = [("features", vector)]
        if self.pooling is None:
            features = [("features", pa.list_(vector)), ("input_ids", pa.list_(pa.int32()))]
        return pa.schema([*features, ("tokens", pa.int32()), ("truncated", pa.bool_())])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        return whole_documents(columns["text"], None, tokenizer, limit)

    def head(self) -> nn.Module:
        from torch import nn

        return nn.Module()

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """`hidden (layers, T, hidden)` to vectors `(T, width)` of the sequences' tokens, or pooled `(N, width)`."""
        vectors = hidden.transpose(0, 1).flatten(1)
        return vectors[: batch.tokens] if self.pooling is None else pool(self.pooling, vectors, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        flat = raw.astype(np.dtype(self.precision), copy=False).ravel()
        features = [pa.FixedSizeListArray.from_arrays(pa.array(flat), self.width)]
        counts = lengths(encoded)
        if self.pooling is None:
            splits = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
            features = [pa.ListArray.from_arrays(splits, features[0]), encoded["input_ids"]]
        return pa.table([*features, pa.array(counts), encoded["truncated"]], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`[[vector, ...]]` of each text's tokens, transformers' shape `[1, tokens, width]`; a pooled vector is
        `[width]`.
        """
        import torch

        features = table["features"].combine_chunks()
        vectors = features.flatten() if self.pooling is None else features
        numbers = torch.tensor(vectors.flatten().to_numpy(zero_copy_only=False)).view(-1, self.width)
        if self.pooling is None:
            each = [part[None] for part in torch.split(numbers, table["tokens"].to_pylist())] if len(table) else []
        else:
            each = list(numbers)
        return each if self.return_tensors else [part.tolist() for part in each]
