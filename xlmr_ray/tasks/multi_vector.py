"""`multi-vector`: a vector for each token of a text, for late interaction (ColBERT; bge-m3, sentence-transformers)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from xlmr_ray.checkpoint.sentence import SentenceConfig, read_sentence_config
from xlmr_ray.checkpoint.token_heads import (
    MULTI_VECTOR_FILE,
    MultiVectorModules,
    TokenHead,
    read_multi_vector_modules,
    read_token_head,
)
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.encoded import lengths
from xlmr_ray.tasks.sentence_inputs import sentence_limit, sentence_tokenizer
from xlmr_ray.tasks.task import EncoderTask, at_least_one, check_choice, checked_options
from xlmr_ray.tasks.windows import flat, row_splits, windows
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from xlmr_ray.model.packed_batch import PackedBatch

NAME = "multi-vector"


@dataclass(frozen=True, kw_only=True)
class MultiVector(EncoderTask):
    """Vectors as BGE-M3 has them (Chen et al., 2024, arXiv:2402.03216, section 3.2): a linear layer over each token's
    last hidden state, to length 1, without the first token's; or as a sentence-transformers multi-vector folder says,
    where the first token's counts and the words of its skip list do not.

    Options:
    - `head_file`: a file of the checkpoint's folder with the layer's `weight (width, hidden)` and `bias` (default: the
      folder's own modules, else `colbert_linear.pt`, bge-m3's).
    - `prompt`: text put before every text (default: none).
    - `prompt_name`: one of the folder's prompts, such as `query` (default: none).
    - `normalize`: vectors of length 1 (default: as the folder says; true for bge-m3's).
    - `dimensions`: the first so many numbers of a vector, before it is normalized (default: all).
    - `precision`: of the stored numbers, `float32` or `float16` (default: float32).
    - `max_length`: tokens of a text; longer texts are cut and flagged (default: what the checkpoint allows).

    Output: `vectors: list<fixed_size_list<float>>`, `start` and `end: list<int32>`, the characters of the text that a
    vector's token stands for (-1 for special tokens and for a prompt's); `tokens`, `truncated`.
    """

    roles = ("text",)
    unit = "token"
    fixed_options = ("head_file",)

    head_file: str | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    normalize: bool | None = None
    precision: str = "float32"
    max_length: int | None = None
    dimensions: int | None = field(default=None, metadata={"added": True})
    layer: TokenHead | None = field(metadata={"option": False})
    modules: MultiVectorModules | None = field(metadata={"option": False})
    prompts: Mapping[str, str] = field(metadata={"option": False})
    config: XLMRobertaConfig = field(metadata={"option": False})
    folder: SentenceConfig | None = field(metadata={"option": False})

    @classmethod
    def bind(cls, folder: Path, config: XLMRobertaConfig, options: Mapping[str, Any]) -> MultiVector:
        known = checked_options(cls, NAME, options)
        modules = read_multi_vector_modules(folder) if known.get("head_file") is None else None
        if modules is not None:
            layer, sentence, prompts = modules.head, None, modules.prompts
        else:
            layer = read_token_head(folder, known.get("head_file") or MULTI_VECTOR_FILE, config.hidden_size)
            sentence = read_sentence_config(folder)
            prompts = {} if sentence is None else sentence.prompts
        return cls(**known, layer=layer, modules=modules, prompts=prompts, config=config, folder=sentence)

    def __post_init__(self) -> None:
        check_choice(NAME, "normalize", self.normalize, (None, True, False))
        check_choice(NAME, "precision", self.precision, ("float32", "float16"))
        at_least_one(NAME, "max_length", self.max_length)
        at_least_one(NAME, "dimensions", self.dimensions)
        if self.prompt is not None and self.prompt_name is not None:
            raise UserError(f"task {NAME}: give prompt or prompt_name, not both")
        if self.prompt_name is not None and self.prompt_name not in self.prompts:
            names = ", ".join(map(repr, self.prompts)) or "none"
            raise UserError(f"task {NAME}: prompt_name {self.prompt_name!r} is none of the folder's prompts ({names})")
        if self.layer is not None and self.layer.weight.shape[1] != self.config.hidden_size:
            got, expected = self.layer.weight.shape[1], self.config.hidden_size
            raise UserError(f"{self.layer.file}: got {got} inputs, expected the model's hidden size {expected}")
        if self.dimensions is not None and self.dimensions > self.full_width:
            raise UserError(f"task {NAME}: dimensions {self.dimensions} is more than the model's {self.full_width}")

    @property
    def full_width(self) -> int:
        return self.config.hidden_size if self.layer is None else self.layer.width

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.dimensions or self.full_width

    @property
    def result_width(self) -> int:
        return self.width

    @property
    def vector_width(self) -> int:
        return self.width

    @property
    def known_prompts(self) -> Mapping[str, str]:
        return self.prompts

    @property
    def normalized(self) -> bool:
        if self.normalize is not None:
            return self.normalize
        return True if self.modules is None else self.modules.normalize

    @property
    def prefix(self) -> str:
        """The text put before every text."""
        return self.prompt or ("" if self.prompt_name is None else self.prompts[self.prompt_name])

    @property
    def files(self) -> tuple[Path, ...]:
        return () if self.layer is None or self.modules is not None else (self.layer.file,)

    @property
    def schema(self) -> pa.Schema:
        vector = pa.list_(pa.float32() if self.precision == "float32" else pa.float16(), self.width)
        spans = [("start", pa.list_(pa.int32())), ("end", pa.list_(pa.int32()))]
        return pa.schema([("vectors", pa.list_(vector)), *spans, ("tokens", pa.int32()), ("truncated", pa.bool_())])

    def prepare(self, columns: pa.Table, tokenizer: XLMRobertaTokenizer) -> pa.Table:
        """An encoded table with the tokens' `start` and `end`, and which of them have a vector (`counted`)."""
        texts = columns["text"]
        if self.prefix:
            texts = pc.binary_join_element_wise(self.prefix, texts, "")
        tokenizer = sentence_tokenizer(self.modules or self.folder, tokenizer)
        limit = sentence_limit(NAME, self.max_length, self.modules or self.folder, self.config, tokenizer)
        encoded = windows(texts, tokenizer, max_length=limit, stride=None, offsets=True).drop_columns(["document"])
        splits = encoded["input_ids"].combine_chunks().offsets
        if self.prefix:
            start, end = (flat(encoded[name]).to_numpy() - len(self.prefix) for name in ("start", "end"))
            of_text = (start >= 0) | (end > 0)  # a token may begin in the prompt and end in the text
            for name, moved in (("start", np.maximum(start, 0)), ("end", end)):
                column = pa.array(np.where(of_text, moved, -1), pa.int32())
                index = encoded.column_names.index(name)
                encoded = encoded.set_column(index, name, pa.ListArray.from_arrays(splits, column))
        ids = flat(encoded["input_ids"]).to_numpy()
        counted = np.ones(len(ids), np.bool_)
        if self.modules is None:
            counted[splits.to_numpy()[:-1]] = False
        elif self.modules.skipped and self.prompt_name != "query":
            known = tokenizer.convert_tokens_to_ids(list(self.modules.skipped))
            counted &= ~np.isin(ids, [one for one in known if one != tokenizer.unk_token_id])
        return encoded.append_column("counted", pa.ListArray.from_arrays(splits, pa.array(counted)))

    def head(self) -> nn.Module:
        from torch import nn

        from xlmr_ray.tasks.token_heads import token_layer

        return nn.ModuleDict({"colbert_linear": nn.Identity() if self.layer is None else token_layer(self.layer)})

    def forward(self, head: nn.Module, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """Vectors `(T, width)` of the tokens."""
        from xlmr_ray.tasks.token_heads import token_vectors

        layer = head.get_submodule("colbert_linear")
        return token_vectors(layer, hidden, self.width, normalize=self.normalized)[: batch.tokens]

    def postprocess(self, raw: NDArray[np.float32], encoded: pa.Table) -> pa.Table:
        counted = flat(encoded["counted"]).to_numpy(zero_copy_only=False)
        kept = np.add.reduceat(counted, row_splits(lengths(encoded))[:-1], dtype=np.int64)
        splits = pa.array(row_splits(kept), pa.int32())
        numbers = pa.array(raw[counted].astype(np.dtype(self.precision), copy=False).ravel())
        vectors = pa.ListArray.from_arrays(splits, pa.FixedSizeListArray.from_arrays(numbers, self.width))
        spans = [
            pa.ListArray.from_arrays(splits, flat(encoded[name]).filter(pa.array(counted))) for name in ("start", "end")
        ]
        return pa.table([vectors, *spans, pa.array(lengths(encoded)), encoded["truncated"]], schema=self.schema)

    def answers(self, table: pa.Table, columns: pa.Table | None = None) -> list[Any]:
        """An array `(vectors, width)` for each text."""
        vectors = table["vectors"].combine_chunks()
        numbers = vectors.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, self.width)
        return np.split(numbers, np.cumsum(pc.list_value_length(vectors).to_numpy())[:-1]) if len(table) else []
