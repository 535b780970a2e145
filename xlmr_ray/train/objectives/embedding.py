"""Embeddings: two texts that belong together, against those of the other pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.objectives.objective import Examples, Objective

SCALE = 20.0  # sentence-transformers'


@dataclass(frozen=True, eq=False)
class EmbeddingObjective(Objective):
    """Cross-entropy of each text's own partner among all partners of the step, by 20 times the cosine: the in-batch
    negatives of sentence-transformers' MultipleNegativesRankingLoss. A partner that has the same text as one's own is
    no negative. A step's pairs are computed at once, so `batch_size` decides what memory it takes.

    `task` is that of the first texts, `partner` that of the second ones: `prompts` may differ.
    """

    together = True
    frozen = False
    labelled = False
    model_class = XLMRobertaModel

    task: Embedding
    partner: Embedding

    @classmethod
    def of(cls, job: FinetuneJob, folder: Path, config: XLMRobertaConfig, rows: pa.Table) -> "EmbeddingObjective":
        options = dict(job.options)
        prompts = options.pop("prompts", {})
        if not isinstance(prompts, dict) or not set(prompts) <= {"text", "text_pair"}:
            raise UserError("options.prompts: expected a mapping of text and text_pair to the texts put before them")
        task = Embedding.bind(folder, config, options)
        if task.dense:
            raise UserError(f"task embedding: {folder} has layers behind the pooling, which are not trained here")
        first, second = (
            replace(task, prompt=prompts[role], prompt_name=None) if role in prompts else task
            for role in ("text", "text_pair")
        )
        return cls(first, second)

    @classmethod
    def roles(cls, job: FinetuneJob) -> tuple[str, ...]:
        return ("text", "text_pair")

    @property
    def config(self) -> XLMRobertaConfig:
        return self.task.config

    def encode(self, rows: pa.Table, tokenizer: XLMRobertaTokenizer) -> Examples:
        first = self.task.prepare(pa.table({"text": rows["text"]}), tokenizer)
        second = self.partner.prepare(pa.table({"text": rows["text_pair"]}), tokenizer)
        whole = pa.concat_tables([first.select(["input_ids"]), second.select(["input_ids"])])
        count = len(rows)
        alternating = np.arange(2 * count).reshape(2, count).T.ravel()
        same = rows["text_pair"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        return Examples.of(whole.take(pa.array(alternating)), splits=np.arange(0, 2 * count + 1, 2), labels=same)

    def loss(
        self, head: nn.Module, outputs: Tensor, batch: PackedBatch, labels: Tensor | None, counts: Sequence[int]
    ) -> Tensor:
        assert labels is not None
        vectors = F.normalize(outputs.float(), dim=-1)
        scores = SCALE * vectors[0::2] @ vectors[1::2].t()
        same = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
        own = torch.arange(len(labels), device=scores.device)
        return F.cross_entropy(scores.masked_fill(same, -torch.inf), own, reduction="sum")

    def measures(self, outputs: Sequence[NDArray[np.float32]], examples: Examples) -> dict[str, float]:
        assert examples.labels is not None
        vectors = np.stack(outputs)  # (E, 2, width)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        best = (vectors[:, 0] @ vectors[:, 1].T).argmax(1)
        return {"recall_at_1": float((examples.labels[best] == examples.labels).mean())}
