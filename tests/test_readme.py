"""What the README says is run: its Python, its job file, and the job files that it names."""

import re
from pathlib import Path

import pytest
import yaml

from xlmr_ray.batch.job import Job, check_job, read_job
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.validation import checked

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_python(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    if "classify" in code:
        assert "'label': 'de'" in printed
        assert "(128,)" in printed
    else:
        assert printed.strip() == "['fr', 'de']"


def job_files() -> list[str]:
    return [text for text in blocks("yaml") if "tasks:\n" in text]


@pytest.mark.parametrize("text", job_files(), ids=["short", "whole"])
def test_job_files(text):
    check_job(yaml.safe_load(text), "README.md")


def test_the_whole_job_file_names_every_key():
    whole = yaml.safe_load(job_files()[1])
    job = check_job(whole, "README.md")
    assert set(Job.model_fields) == set(whole)
    for name in ("input", "engine", "cluster", "errors", "report"):
        known = set(type(getattr(job, name)).model_fields) - {"text_pair", "question", "context", "choices"}
        assert known == set(whole[name]), name


def test_the_service_s_settings():
    (text,) = [text for text in blocks("yaml") if text not in job_files()]
    check_models(checked(ServeSettings, yaml.safe_load(text), "README.md"))


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_job_files_in_pipelines_fit_their_tasks(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = check_job(read_job(path), str(path))
    roles = columns_of(job, task_recipes(job)).text
    assert roles == {role: getattr(job.input, role) for role in roles}


def test_the_names_of_files_are_there():
    for name in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_commands_are_commands():
    from typer.main import get_command

    from xlmr_ray.cli import app

    for name in re.findall(r"^xlmr-ray (\w+)", README, re.MULTILINE):
        assert name in get_command(app).commands
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"`?make (\w+)`?", README):
        assert name in targets, name
