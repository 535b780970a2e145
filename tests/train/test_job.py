"""Keys of a training's data: those of the section, and the roles of all tasks."""

import pytest

from xlmr_ray import UserError
from xlmr_ray.tasks.registry import TASKS
from xlmr_ray.train.job import check_finetune_job

JOB = {"task": "rerank", "output": {"path": "out"}}


@pytest.mark.parametrize("role", sorted({role for task in TASKS.values() for role in task.possible_roles()}))
def test_any_role_of_a_task_is_a_key(role):
    job = check_finetune_job({**JOB, "train": {"path": "rows.parquet", role: "name"}}, "job.yaml")
    assert job.train.column(role) == "name"
    assert job.train.column("text_pair") == ("name" if role == "text_pair" else None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"text_pear": "b"}, "job.yaml: unknown key 'train.text_pear', did you mean 'text_pair'?"),
        ({"zzz": "b"}, "job.yaml: unknown key 'train.zzz'; there are: bad_rows, choices, context, document, format"),
        ({"text_pair": 3}, "job.yaml: train.text_pair: expected the name of a column, got 3"),
    ],
)
def test_other_keys_are_refused(keys, message):
    with pytest.raises(UserError) as error:
        check_finetune_job({**JOB, "train": {"path": "rows.parquet", **keys}}, "job.yaml")
    assert str(error.value).startswith(message)
