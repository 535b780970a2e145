"""`rerank`: how well a document answers a query, by a checkpoint that reads both together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.checkpoint.calibration import read_temperature
from xlmr_ray.checkpoint.cross_encoder import CrossEncoderConfig, read_cross_encoder_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import length_limit
from xlmr_ray.tasks.long_documents import check_long, encode_documents, length_columns, length_fields
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.text_classifier import classifier, logits_of
from xlmr_ray.tasks.windows import document_splits
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "rerank"


@dataclass(frozen=True, kw_only=True)
class Rerank(EncoderTask):
    """Scores as sentence-transformers' CrossEncoder has them.

    Options:
    - `function_to_apply` to the logit: `sigmoid`, or `none` for the logit itself (default: what the checkpoint's files
      say, as sentence-transformers reads them, sigmoid else).
    - `prompt`: text put before every query (default: the default prompt of the checkpoint's folder, where it has one).
    - `max_length`: tokens of query (`text`) and document (`text_pair`) together (default: what the checkpoint allows).
    - `long`: what is longer is `cut` and flagged, or read in `windows`, of which the best score counts (default: cut).
    - `stride`: tokens that neighbouring windows share (default: an eighth of `max_length`).

    It is the longer text that is cut or goes by windows: the document, save where the query takes over half of the
    tokens. So cut CrossEncoder and text-embeddings-inference, too.

    Output: `score`; `tokens`, `truncated`, and `windows` where texts are read in windows.
    """

    roles = ("text", "text_pair")
    reads = "first"
    architectures = ("ForSequenceClassification",)

    function_to_apply: str | None = None
    prompt: str | None = field(default=None, metadata={"added": True})
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: CrossEncoderConfig = field(default=CrossEncoderConfig(), metadata={"option": False})
    temperature: float | None = field(default=None, metadata={"option": False})

    @classmethod
    def is_default(cls, architecture: str, config: XLMRobertaConfig) -> bool:
        return architecture in cls.architectures and len(config.labels) == 1

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> Rerank:
        if len(config.labels) != 1:
            raise UserError(f"task {NAME}: {folder} scores {len(config.labels)} labels, expected one")
        known = checked_options(cls, NAME, options)
        own = read_cross_encoder_config(folder, config)
        return cls(**known, config=config, folder=own, temperature=read_temperature(folder, NAME))

    def __post_init__(self) -> None:
        check_choice(NAME, "function_to_apply", self.function_to_apply, (None, "sigmoid", "none"))
        at_least_one(NAME, "max_length", self.max_length)
        check_long(NAME, self.long, self.stride)

    @property
    def function(self) -> nn.Module:
        """What is applied to logits."""
        from torch import nn

        if self.function_to_apply is not None:
            return nn.Sigmoid() if self.function_to_apply == "sigmoid" else nn.Identity()
        made: nn.Module = getattr(nn, self.folder.activation)()
        return made

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("score", pa.float32()), *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        limit = length_limit(NAME, self.max_length, self.config.max_length, tokenizer)
        texts, pairs = columns["text"], columns["text_pair"]
        if prompt := self.folder.prompt if self.prompt is None else self.prompt:
            texts = pc.binary_join_element_wise(prompt, texts, "")
        return encode_documents(NAME, texts, pairs, tokenizer, max_length=limit, long=self.long, stride=self.stride)

    def head(self) -> nn.Module:
        return classifier(self.config)

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """A logit a pair `(N)`."""
        return logits_of(head, hidden, batch)[:, 0]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        import torch
        from torch import nn

        best = raw if self.long == "cut" else np.maximum.reduceat(raw, document_splits(encoded)[:-1])
        logits = torch.from_numpy(best.astype(np.float64))
        function = self.function
        if self.temperature is not None and isinstance(function, nn.Sigmoid):
            logits = logits / self.temperature
        scores = function(logits).to(torch.float32).numpy()
        return pa.table([pa.array(scores), *length_columns(self.long, encoded)], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """A score a pair."""
        return list(table["score"].to_pylist())


def rerank(
    score: Callable[[list[dict[str, str]]], list[float]],
    query: str,
    documents: Sequence[str],
    *,
    top_n: int | None = None,
    return_documents: bool = False,
) -> list[dict[str, Any]]:
    """The documents by how well they answer the query, best first, in the form of Cohere's and Jina's services:
    `index` in `documents`, `relevance_score`, and the `document` where asked for; the best `top_n` of them.

    `score` is `pipeline("rerank", …)`, or whatever else gives a score a pair.
    """
    at_least_one(NAME, "top_n", top_n)
    if not isinstance(query, str) or isinstance(documents, str) or not all(isinstance(one, str) for one in documents):
        raise UserError(f"{NAME}: expected a query and a list of documents, all of them strings")
    scores = score([{"text": query, "text_pair": document} for document in documents])
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    return [
        {"index": index, "relevance_score": scores[index]}
        | ({"document": {"text": documents[index]}} if return_documents else {})
        for index in best
    ]
