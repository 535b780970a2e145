import pytest

from xlmr_ray.errors import UserError
from xlmr_ray.serve.settings import ServeSettings, from_call
from xlmr_ray.validation import checked


def settings(**content):
    return checked(ServeSettings, {"models": ["embedded:mini"], **content}, "file.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"limit": {}}, "unknown key 'limit', did you mean 'limits'?"),
        ({"limits": {"input": 3}}, "unknown key 'limits.input', did you mean 'inputs'?"),
        ({"models": [{"model": "embedded:mini", "task": ["embedding"]}]}, "did you mean 'tasks'?"),
        ({"models": [{"name": "a"}]}, "'models.0.model' is missing"),
        ({"models": []}, "models: list should have at least 1 item"),
        ({"models": ["embedded:mini", "other/mini"]}, "two are named 'mini'; give each another `name`"),
        ({"replicas": {"min": 3, "max": 2}}, "min 3 is more than max 2"),
        ({"http": {"port": 70000}}, "http.port: input should be less than or equal to 65535, got 70000"),
        ({"limits": {"request_s": 0}}, "limits.request_s: input should be greater than 0"),
    ],
)
def test_what_is_wrong_is_named(content, message):
    with pytest.raises(UserError) as raised:
        settings(**content)
    assert message in str(raised.value)
    assert str(raised.value).startswith("file.yaml: ")


def test_names_of_models():
    names = ["embedded:mini", "embedded:mini/heads/script", "s3://b/e5/", "owner/model@v1", "/tmp/x/y"]
    assert [m.called for m in settings(models=names).models] == ["mini", "script", "e5", "model", "y"]


def test_tasks_are_names_or_mappings_with_options():
    (model,) = settings(models=[{"model": "a", "tasks": ["embedding", {"task": "rerank", "long": "windows"}]}]).models
    assert [(task.task, task.options) for task in model.tasks] == [("embedding", {}), ("rerank", {"long": "windows"})]


def test_of_the_command_line(tmp_path):
    one = from_call(None, model="embedded:mini", tasks=["embedding"], host=None, port=9000)
    assert (one.models[0].model, one.models[0].tasks[0].task, one.http.port) == ("embedded:mini", "embedding", 9000)
    file = tmp_path / "serve.yaml"
    file.write_text("models: [embedded:mini]\nhttp: {port: 1, host: 0.0.0.0}\n")
    read = from_call(file, model=None, tasks=(), host=None, port=2)
    assert (read.http.host, read.http.port) == ("0.0.0.0", 2)
    with pytest.raises(UserError, match="give a FILE or --model"):
        from_call(None, model=None, tasks=(), host=None, port=None)
    with pytest.raises(UserError, match="not both"):
        from_call(file, model="embedded:mini", tasks=(), host=None, port=None)
    with pytest.raises(UserError, match="--task goes with --model"):
        from_call(file, model=None, tasks=["embedding"], host=None, port=None)
