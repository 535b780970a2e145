"""What can be trained, by the task's name."""

from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import TASKS, canonical_task, task_class
from xlmr_ray.train.objectives.embedding import EmbeddingObjective
from xlmr_ray.train.objectives.fill_mask import FillMaskObjective
from xlmr_ray.train.objectives.multiple_choice import MultipleChoiceObjective
from xlmr_ray.train.objectives.objective import Objective
from xlmr_ray.train.objectives.question_answering import QuestionAnsweringObjective
from xlmr_ray.train.objectives.rerank import RerankObjective
from xlmr_ray.train.objectives.text_classification import TextClassificationObjective
from xlmr_ray.train.objectives.token_classification import TokenClassificationObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "embedding": EmbeddingObjective,
    "fill-mask": FillMaskObjective,
    "multiple-choice": MultipleChoiceObjective,
    "question-answering": QuestionAnsweringObjective,
    "rerank": RerankObjective,
    "text-classification": TextClassificationObjective,
    "token-classification": TokenClassificationObjective,
}


def objective_class(name: str) -> type[Objective]:
    """Raises UserError for a task that is not there, or is not trained here."""
    known = canonical_task(name)
    task_class(known)
    if known not in OBJECTIVES:
        others = ", ".join(task for task in TASKS if task in OBJECTIVES)
        raise UserError(f"task {name}: is not trained here; these are: {others}")
    return OBJECTIVES[known]
