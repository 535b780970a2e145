"""The tasks by name, and which of them a checkpoint is for."""

import inspect
import re

import pytest

from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.registry import TASKS, default_tasks
from xlmr_ray.tasks.task import option_fields

VECTORS = ("embedding", "sentence-similarity", "feature-extraction")


@pytest.mark.parametrize(
    ("architecture", "labels", "tasks"),
    [
        ("XLMRobertaModel", None, VECTORS),
        ("RobertaForMaskedLM", None, ("fill-mask",)),
        ("XLMRobertaForCausalLM", None, ("text-generation",)),
        ("XLMRobertaForTokenClassification", ["O", "B"], ("token-classification",)),
        ("XLMRobertaForQuestionAnswering", None, ("question-answering",)),
        ("XLMRobertaForMultipleChoice", None, ("multiple-choice",)),
        ("XLMRobertaForSequenceClassification", ["score"], ("rerank",)),
        ("XLMRobertaForSequenceClassification", ["a", "b"], ("text-classification",)),
        (
            "XLMRobertaForSequenceClassification",
            ["contradiction", "Entailment"],
            ("zero-shot-classification", "text-classification"),
        ),
    ],
)
def test_what_a_checkpoint_is_for_by_its_architecture(tmp_path, architecture, labels, tasks):
    named = {} if labels is None else {"id2label": dict(enumerate(labels))}
    assert default_tasks(tmp_path, XLMRobertaConfig(architectures=[architecture], **named)) == tasks


def test_a_folder_of_sentence_transformers_is_for_vectors(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    assert default_tasks(tmp_path, XLMRobertaConfig(architectures=["XLMRobertaForMaskedLM"])) == VECTORS


def test_an_architecture_without_a_task_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"names BertForPreTraining, which no task is the default for; name a task"):
        default_tasks(tmp_path, XLMRobertaConfig(architectures=["BertForPreTraining"]))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_s_docstring_has_its_options_in_a_list_and_its_output(name):
    text = inspect.getdoc(TASKS[name])
    listed = "\n".join(item for item in re.findall(r"^- .*?(?=\n\n|\n- |\Z)", text, re.DOTALL | re.MULTILINE))
    assert [one.name for one in option_fields(TASKS[name]) if f"`{one.name}`" not in listed] == []
    assert "Output: `" in text
