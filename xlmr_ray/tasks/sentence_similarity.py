"""`sentence-similarity`: how near the embeddings of two texts are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks import embedding
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.encoded import documents
from xlmr_ray.tasks.long_documents import length_fields
from xlmr_ray.tasks.task import EncoderTask, check_choice, checked_options
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "sentence-similarity"
FUNCTIONS = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True, kw_only=True)
class SentenceSimilarity(EncoderTask):
    """How similar the embeddings of two texts are.

    Options:
    - `similarity`: `cosine`, `dot`, or a distance, negated as in sentence-transformers, `euclidean` or `manhattan`
      (default: what the folder says, else cosine).
    - `pooling`, `normalize`, `prompt`, `prompt_name`, `prompts`, `dimensions`, `max_length`, `long`, `stride`: how a
      text becomes a vector, as for the task `embedding`.

    Output: `score`; `tokens` and `windows` of both texts, `truncated` where either was cut.
    """

    roles = ("text", "text_pair")
    architectures = ("Model",)
    default_order = 1

    similarity: str | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    max_length: int | None = None
    long: str = "cut"
    stride: int | None = None
    prompts: Mapping[str, str] | None = field(default=None, metadata={"added": True})
    embedding: Embedding = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> SentenceSimilarity:
        known = checked_options(cls, NAME, options)
        try:
            inner = Embedding.bind(folder, config, {k: v for k, v in known.items() if k != "similarity"})
        except UserError as error:
            raise UserError(f"task {NAME}: {str(error).removeprefix(f'task {embedding.NAME}: ')}") from None
        return cls(**known, embedding=inner)

    def __post_init__(self) -> None:
        check_choice(NAME, "similarity", self.similarity, (None, *FUNCTIONS))
        check_choice(NAME, "similarity_fn_name of the folder", self.function, FUNCTIONS)

    @property
    def function(self) -> str:
        """The similarity that is computed, one of `FUNCTIONS`."""
        folder = self.embedding.folder
        return self.similarity or (folder.similarity if folder is not None else None) or "cosine"

    @property
    def unit(self) -> str:
        return self.embedding.unit

    @property
    def reads(self) -> str:
        return self.embedding.reads

    @property
    def layers(self) -> tuple[int, ...]:
        return self.embedding.layers

    @property
    def result_width(self) -> int:
        return self.embedding.width

    @property
    def schema(self) -> pa.Schema:
        """`tokens` and `windows` are those of both texts, `truncated` says whether either was cut."""
        return pa.schema([("score", pa.float32()), *length_fields(self.long)])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """The two texts of a pair one after the other, each embedded by itself. `of_text` is a sequence's text."""
        both = pa.concat_arrays([columns[role].combine_chunks() for role in self.roles])
        order = np.arange(2 * columns.num_rows).reshape(2, -1).T.ravel()
        try:
            encoded = self.embedding.prepare(pa.table({"text": both.take(pa.array(order))}), tokenizer)
        except TokenizerError as error:
            raise TokenizerError(error.index // 2, error.reason) from None
        of_text = documents(encoded)
        if "document" in encoded.column_names:
            encoded = encoded.drop_columns(["document"])
        encoded = encoded.append_column("of_text", pa.array(of_text, pa.int32()))
        return encoded.append_column("document", pa.array(of_text // 2, pa.int32()))

    def head(self) -> nn.Module:
        return self.embedding.head()

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """What the task `embedding` gives, for each text."""
        return self.embedding.forward(head, hidden, batch)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        # Numbered anew: documents may have been taken out since `prepare`.
        _, of_text = np.unique(encoded["of_text"].to_numpy(), return_inverse=True)
        texts = encoded.drop_columns(["of_text", "document"]).append_column("document", pa.array(of_text, pa.int32()))
        table = self.embedding.postprocess(raw, texts)
        vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        first, second = vectors.astype(np.float64).reshape(-1, 2, self.embedding.width).transpose(1, 0, 2)
        scores = similarities(self.function, first, second).astype(np.float32)
        both = [table[name].to_numpy().reshape(-1, 2) for name, _ in length_fields(self.long)]
        of_pair = [pair.any(axis=1) if pair.dtype == np.bool_ else pair.sum(axis=1, dtype=np.int32) for pair in both]
        return pa.table([pa.array(scores), *map(pa.array, of_pair)], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """A score a pair."""
        return list(table["score"].to_pylist())


def similarities(function: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """A number a pair `(N)` of vectors `(N, width)` each. The cosine of a vector of zeros is 0."""
    if function == "euclidean":
        return -norms_of(first - second)
    if function == "manhattan":
        distances: NDArray[np.float64] = np.abs(first - second).sum(axis=1)
        return -distances
    dots: NDArray[np.float64] = (first * second).sum(axis=1)
    if function == "dot":
        return dots
    return dots / np.maximum(norms_of(first) * norms_of(second), 1e-12)


def norms_of(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Euclidean norm `(N)` of each of `(N, width)`."""
    norms: NDArray[np.float64] = np.sqrt(np.square(vectors).sum(axis=1))
    return norms
