"""The examples of docs/extending.md: each block is run as it stands, in the order of its section."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.extending import PAGE, SECTIONS
from xlmr_ray.model.attention.backends import ATTENTION
from xlmr_ray.serve import app
from xlmr_ray.tasks.registry import TASKS

REGISTRIES: tuple[dict[str, Any], ...] = (ATTENTION, TASKS)


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries as they were, afterwards, and the files of the examples forgotten."""
    monkeypatch.setattr(app, "PROTOCOLS", app.PROTOCOLS)
    before = [(registry, dict(registry)) for registry in REGISTRIES]
    modules = set(sys.modules)
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) is None or "extending" in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_there_is_a_section_for_each_thing_that_can_be_added() -> None:
    assert list(SECTIONS) == ["A task", "An attention back end", "A protocol"]
    assert all(blocks for blocks in SECTIONS.values())


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example(section: str, undone: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("extending")
    names: dict[str, object] = {}
    for block in SECTIONS[section]:
        if path := re.match(r"# (xlmr_ray/\S+)\.py\n", block):
            assert not (PAGE.parents[1] / f"{path[1]}.py").exists(), "an example that is in the package is none"
            file = folder / f"{path[1].rpartition('/')[2]}.py"
            file.write_text(block)
            name = path[1].replace("/", ".")
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        else:
            exec(compile(block, f"{PAGE.name}: {section}", "exec"), names)
