"""`hybrid-similarity`: how near two texts are by bge-m3's three kinds of vectors, and by weighted sums of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.checkpoint.token_heads import MULTI_VECTOR_FILE, SPARSE_FILE, TokenHead, read_token_head
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import lengths, whole_documents
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.sparse import largest_weights, with_terms
from xlmr_ray.tasks.task import EncoderTask, at_least_one, checked_options
from xlmr_ray.tasks.windows import row_splits
from xlmr_ray.tokenizer.tokenizer import TokenizerError, XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "hybrid-similarity"
SCORES = ("dense", "sparse", "colbert", "sparse_dense", "colbert_sparse_dense")


@dataclass(frozen=True, kw_only=True)
class HybridSimilarity(EncoderTask):
    """Scores of a pair (`text` as the query, `text_pair` as the passage) as BGE-M3 has them (Chen et al., 2024,
    arXiv:2402.03216, section 3.2): `dense`, the cosine of the first tokens' states; `sparse`, the sum over shared
    tokens of the two weights' product; `colbert`, for each of the query's vectors the largest dot product with one of
    the passage's, averaged; and means of two and of three of them by `weights`.

    Options:
    - `weights`: of dense, sparse and colbert in the means, three numbers from 0 on (default: [1, 1, 1]).
    - `sparse_file`, `multi_vector_file`: the layers' files in the folder (default: bge-m3's names).
    - `max_length`: tokens of a text; longer texts are cut and flagged (default: what the checkpoint allows).

    Output: `dense`, `sparse`, `colbert`, `sparse_dense`, `colbert_sparse_dense`; `tokens` of both texts, `truncated`
    where either was cut.
    """

    roles = ("text", "text_pair")
    unit = "token"
    fixed_options = ("sparse_file", "multi_vector_file")

    weights: Sequence[float] = (1.0, 1.0, 1.0)
    sparse_file: str = SPARSE_FILE
    multi_vector_file: str = MULTI_VECTOR_FILE
    max_length: int | None = None
    sparse_layer: TokenHead = field(metadata={"option": False})
    vector_layer: TokenHead = field(metadata={"option": False})
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> HybridSimilarity:
        known = checked_options(cls, NAME, options)
        files = known.get("sparse_file", SPARSE_FILE), known.get("multi_vector_file", MULTI_VECTOR_FILE)
        return cls(
            **known,
            sparse_layer=read_token_head(folder, files[0], config.hidden_size, 1),
            vector_layer=read_token_head(folder, files[1], config.hidden_size),
            config=config,
            folder=read_sentence_config(folder),
        )

    def __post_init__(self) -> None:
        at_least_one(NAME, "max_length", self.max_length)
        given = self.weights
        numbers = isinstance(given, list | tuple) and all(type(one) in (int, float) and one >= 0 for one in given)
        if not numbers or len(given) != 3 or given[0] + given[1] <= 0:
            raise UserError(
                f"task {NAME}: weights: got {given!r}, expected three numbers from 0 on, for dense, sparse "
                "and colbert, the first two not both 0"
            )

    @property
    def width(self) -> int:
        """Numbers of a token's raw result beside its lexical weight: its vector, or the first token's state."""
        return max(self.vector_layer.width, self.config.hidden_size)

    @property
    def result_width(self) -> int:
        return 1 + self.width

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.sparse_layer.file, self.vector_layer.file)

    @property
    def schema(self) -> pa.Schema:
        scores = [(name, pa.float32()) for name in SCORES]
        return pa.schema([*scores, ("tokens", pa.int32()), ("truncated", pa.bool_())])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """The two texts of a pair one after the other, a sequence each."""
        both = pa.concat_arrays([columns[role].combine_chunks() for role in self.roles])
        order = np.arange(2 * columns.num_rows).reshape(2, -1).T.ravel()
        tokenizer = sentence_tokenizer(self.folder, tokenizer)
        limit = sentence_limit(NAME, self.max_length, self.folder, self.config, tokenizer)
        try:
            encoded = whole_documents(pa.chunked_array([both.take(pa.array(order))]), None, tokenizer, limit)
        except TokenizerError as error:
            raise TokenizerError(error.index // 2, error.reason) from None
        encoded = with_terms(encoded, tokenizer)
        return encoded.append_column("document", pa.array(np.arange(encoded.num_rows) // 2, pa.int32()))

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.tasks.token_heads import LexicalLayer, token_layer

        return nn.ModuleDict(
            {"sparse_linear": LexicalLayer(self.sparse_layer), "colbert_linear": token_layer(self.vector_layer)}
        )

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """`(T, 1 + width)`: a token's lexical weight, and its vector. The first token of a sequence has no vector, and
        its state, to length 1, instead; what is shorter ends with zeros.
        """
        import torch
        from torch.nn import functional as F

        from xlmr_ray.tasks.token_heads import token_vectors

        weights = head.get_submodule("sparse_linear")(hidden[: batch.tokens])
        vectors = token_vectors(head.get_submodule("colbert_linear"), hidden, normalize=True)[: batch.tokens]
        vectors = F.pad(vectors, (0, self.width - vectors.shape[1]))
        dense = F.normalize(batch.first(hidden).float(), dim=-1)
        starts = batch.layout.cu_seqlens[: batch.sequences].long()
        vectors[starts] = F.pad(dense, (0, self.width - dense.shape[1]))
        return torch.cat([weights, vectors], dim=1)

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        splits = row_splits(lengths(encoded))
        texts = encoded.set_column(
            encoded.column_names.index("document"), "document", pa.array(np.arange(encoded.num_rows), pa.int32())
        )
        term_splits, terms, term_weights, _ = largest_weights(raw[:, 0], texts)
        vectors = raw[:, 1:].astype(np.float64)
        scores = np.zeros((encoded.num_rows // 2, len(SCORES)))
        dense, sparse, colbert = self.weights
        for pair, score in enumerate(scores):
            query, passage = (vectors[splits[text] : splits[text + 1]] for text in (2 * pair, 2 * pair + 1))
            score[0] = query[0] @ passage[0]
            own, other = (slice(term_splits[text], term_splits[text + 1]) for text in (2 * pair, 2 * pair + 1))
            _, left, right = np.intersect1d(terms[own], terms[other], assume_unique=True, return_indices=True)
            score[1] = term_weights[own][left].astype(np.float64) @ term_weights[other][right].astype(np.float64)
            score[2] = (query[1:] @ passage[1:].T).max(axis=1).mean()
            score[3] = (dense * score[0] + sparse * score[1]) / (dense + sparse)
            score[4] = (dense * score[0] + sparse * score[1] + colbert * score[2]) / (dense + sparse + colbert)
        tokens = lengths(encoded).reshape(-1, 2).sum(axis=1, dtype=np.int32)
        truncated = encoded["truncated"].to_numpy().reshape(-1, 2).any(axis=1)
        columns = [pa.array(scores[:, index].astype(np.float32)) for index in range(len(SCORES))]
        return pa.table([*columns, pa.array(tokens), pa.array(truncated)], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """`{"dense": …, "sparse": …, "colbert": …, "sparse+dense": …, "colbert+sparse+dense": …}` for each pair."""
        rows = table.select(list(SCORES)).to_pylist()
        return [{name.replace("_", "+"): score for name, score in row.items()} for row in rows]
