"""The tasks by name."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlmr_ray.checkpoint.folder import kind_of_class, read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.model.activations import check_activation
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.feature_extraction import FeatureExtraction
from xlmr_ray.tasks.fill_mask import FillMask
from xlmr_ray.tasks.hybrid_similarity import HybridSimilarity
from xlmr_ray.tasks.multi_vector import MultiVector
from xlmr_ray.tasks.multiple_choice import MultipleChoice
from xlmr_ray.tasks.passage_embedding import PassageEmbedding
from xlmr_ray.tasks.perplexity import Perplexity
from xlmr_ray.tasks.pseudo_perplexity import PseudoPerplexity
from xlmr_ray.tasks.question_answering import QuestionAnswering
from xlmr_ray.tasks.rerank import Rerank
from xlmr_ray.tasks.sentence_similarity import SentenceSimilarity
from xlmr_ray.tasks.sparse import Sparse
from xlmr_ray.tasks.task import Task
from xlmr_ray.tasks.text_classification import TextClassification
from xlmr_ray.tasks.text_generation import TextGeneration
from xlmr_ray.tasks.token_classification import TokenClassification
from xlmr_ray.tasks.zero_shot_classification import ZeroShotClassification

TASKS: dict[str, type[Task]] = {
    "embedding": Embedding,
    "feature-extraction": FeatureExtraction,
    "fill-mask": FillMask,
    "hybrid-similarity": HybridSimilarity,
    "multi-vector": MultiVector,
    "multiple-choice": MultipleChoice,
    "passage-embedding": PassageEmbedding,
    "perplexity": Perplexity,
    "pseudo-perplexity": PseudoPerplexity,
    "question-answering": QuestionAnswering,
    "rerank": Rerank,
    "sentence-similarity": SentenceSimilarity,
    "sparse": Sparse,
    "text-classification": TextClassification,
    "text-generation": TextGeneration,
    "token-classification": TokenClassification,
    "zero-shot-classification": ZeroShotClassification,
}
# transformers' names for the same tasks.
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def canonical_task(name: str) -> str:
    """The task's own name, for it or an alias of it."""
    return ALIASES.get(name, name)


def task_class(name: str) -> type[Task]:
    """The class of a task. Raises UserError that names the nearest one."""
    name = canonical_task(name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, 1)
        raise UserError(
            f"no task {name!r}" + (f", did you mean {near[0]!r}?" if near else "") + f"; there are: {', '.join(TASKS)}"
        )
    return TASKS[name]


def default_tasks(folder: Path, config: XLMRobertaConfig) -> tuple[str, ...]:
    """What the checkpoint in a folder is for, by its architecture. Raises UserError where that says nothing."""
    architecture = kind_of_class(next(iter(config.architectures or []), ""))
    if (folder / "modules.json").exists():
        architecture = "Model"
    names = [name for name, task in TASKS.items() if task.is_default(architecture, config)]
    if not names:
        named = ", ".join(config.architectures or []) or "no architecture"
        raise UserError(f"{folder}: config.json names {named}, which no task is the default for; name a task")
    return tuple(sorted(names, key=lambda name: TASKS[name].default_order))


def bind_task(name: str, folder: Path, options: Mapping[str, Any]) -> Task:
    """The task for the checkpoint in a folder. Raises UserError, also for layers that there are not."""
    config = XLMRobertaConfig.from_dict(read_config(folder))
    check_activation(config.hidden_act)
    return task_class(name).bind(folder, config, options)
