"""Job files: what is accepted, and how what is not is told."""

import pytest

from xlmr_ray.batch.job import check_job, read_job, with_setting
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.errors import UserError
from xlmr_ray.tasks.embedding import Embedding
from xlmr_ray.tasks.registry import TASKS

BASE = {"input": {"path": "in/"}, "tasks": [{"task": "embedding", "pooling": "cls"}], "output": {"path": "out/"}}


def test_defaults():
    job = check_job(BASE, "job.yaml")
    assert job.model == "embedded:mini"
    assert job.input.path == ["in/"]
    assert job.tasks[0].options == {"pooling": "cls"}
    assert job.errors.max_fraction == 0.01


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.dtyp=float32", "job.yaml: unknown key 'engine.dtyp', did you mean 'dtype'?"),
        ("inputs=3", "job.yaml: unknown key 'inputs', did you mean 'input'?"),
        ("input.txt=a", "job.yaml: unknown key 'input.txt', did you mean 'text'?"),
        ("zzz=3", "job.yaml: unknown key 'zzz'; there are: name, model, adapters"),
        ("engine.max_tokens=-1", "job.yaml: engine.max_tokens: input should be greater than or equal to 1, got -1"),
        ("cluster.encoders=many", "job.yaml: cluster.encoders: input should be a valid integer"),
        ("cluster.encoders=0", "job.yaml: cluster.encoders: input should be greater than or equal to 1"),
        ("cluster.encoders={max: few}", "job.yaml: cluster.encoders.max: input should be a valid integer"),
        ("cluster.encoders={min: 3, max: 2}", "job.yaml: cluster.encoders: min: 3 is more than max: 2"),
        ("cluster.encoders={most: 2}", "job.yaml: unknown key 'cluster.encoders.most'"),
        ("cluster=5", "job.yaml: cluster: expected a mapping"),
        ("errors.max_fraction=2", "job.yaml: errors.max_fraction: input should be less than or equal to 1, got 2"),
        ("engine.dtype=int3", "job.yaml: engine.dtype: input should be 'auto', 'float32', 'float16' or 'bfloat16'"),
        ("tasks=[]", "job.yaml: tasks: list should have at least 1 item"),
        (
            "output={path: out, compact: true, table: delta}",
            "job.yaml: output: compact: not beside table, which names the files as the shards wrote them",
        ),
        ("engine=3", "job.yaml: engine: expected a mapping, got 3"),
        ("tasks=[[embedding]]", "job.yaml: tasks.0: expected a mapping, got ['embedding']"),
        ("tasks.0.task=null", "job.yaml: tasks.0.task: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(setting, message):
    with pytest.raises(UserError) as caught:
        check_job(with_setting(BASE, setting), "job.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_text_columns_of_a_job():
    content = with_setting(with_setting(BASE, "input.choices=answers"), "input.question=q")
    section = check_job(content, "job.yaml").input
    named = {role: section.column(role) for role in ("text", "text_pair", "question", "context", "choices")}
    assert named == {"text": "text", "text_pair": None, "question": "q", "context": None, "choices": "answers"}
    with pytest.raises(UserError, match=r"input\.choices: expected the name of a column, got \['a', 'b'\]"):
        check_job(with_setting(BASE, "input.choices=[a, b]"), "job.yaml")


def test_a_role_of_a_new_task_is_a_key_of_the_input(monkeypatch):
    content = with_setting(BASE, "input.headline=title")
    with pytest.raises(UserError, match=r"unknown key 'input\.headline'; there are: choices, context, .*, text_pair"):
        check_job(content, "job.yaml")

    class Headlines(Embedding):
        roles = ("text", "headline")

    monkeypatch.setitem(TASKS, "headlines", Headlines)
    job = check_job({**content, "tasks": ["headlines"]}, "job.yaml")
    assert (job.input.column("headline"), job.input.column("text")) == ("title", "text")
    assert check_job(job.model_dump(mode="json"), "job.yaml") == job
    assert columns_of(job, task_recipes(job)).text == {"text": "text", "headline": "title"}


@pytest.mark.parametrize("name", ["input", "tasks", "output"])
def test_what_is_missing_is_named(name):
    with pytest.raises(UserError, match=f"job.yaml: '{name}' is missing"):
        check_job({key: value for key, value in BASE.items() if key != name}, "job.yaml")


@pytest.mark.parametrize("tasks", ["embedding", ["embedding"], [{"task": "embedding"}]])
def test_a_task_is_a_name_or_a_mapping_with_options(tasks):
    (task,) = check_job({**BASE, "tasks": tasks}, "job.yaml").tasks
    assert (task.task, task.options) == ("embedding", {})


def test_two_tasks_of_one_name():
    with pytest.raises(UserError, match="two are named 'embedding'"):
        check_job({**BASE, "tasks": [{"task": "embedding"}, {"task": "embedding"}]}, "job.yaml")


def test_settings_reach_into_sections_and_lists():
    content = with_setting(with_setting(BASE, "tasks.0.pooling=max"), "input.keep=[lang, url]")
    job = check_job(with_setting(content, "engine.max_tokens=512"), "job.yaml")
    assert (job.tasks[0].options, job.input.keep, job.engine.max_tokens) == ({"pooling": "max"}, ["lang", "url"], 512)
    assert BASE["tasks"][0]["pooling"] == "cls"


@pytest.mark.parametrize("setting", ["engine", "=3", "tasks.7.top_k=1", "name.x=1"])
def test_settings_of_another_form(setting):
    with pytest.raises(UserError, match="--set"):
        with_setting({**BASE, "name": "x"}, setting)


def test_files(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("input: {path: [a")
    with pytest.raises(UserError, match=r"job\.yaml:\d+: is not YAML"):
        read_job(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match=r"expected a mapping .*, got list"):
        read_job(path)
    path.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match="is not YAML"):
        read_job(path)
    with pytest.raises(UserError, match="No such file"):
        read_job(tmp_path / "none.yaml")
