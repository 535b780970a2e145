"""The examples of docs/extending.md, and the package with some of them in it."""

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PACKAGE = PAGE.parents[1] / "xlmr_ray"
SECTIONS = {
    section.split("\n", 1)[0]: re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]
}


def path_of(block: str) -> str | None:
    """Where in the package a block's file stands (`tasks/token_count.py`); None for one that is no file."""
    found = re.match(r"# xlmr_ray/(\S+\.py)\n", block)
    return None if found is None else found[1]


def loaded(block: str, folder: Path) -> ModuleType:
    """The module of a block that is a file, under the name that it would have in the package."""
    path = path_of(block)
    assert path is not None
    assert not (PACKAGE / path).exists(), "an example that is in the package is none"
    file = folder / Path(path).name
    file.write_text(block, "utf-8")
    name = f"xlmr_ray.{path.removesuffix('.py').replace('/', '.')}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package_with(folder: Path, lines: Mapping[str, tuple[str, str]]) -> Path:
    """A folder for PYTHONPATH: the package with the files of sections' examples, and a line for each at the end of a
    registry: section -> registry, line. All else is the package's own, by links.
    """
    files = {}
    for section, (registry, line) in lines.items():
        block = SECTIONS[section][0]
        path = path_of(block)
        assert path is not None
        module, name = path.removesuffix(".py").replace("/", "."), re.findall(r"\w+", line.partition("= ")[2])
        imported = f"from xlmr_ray.{module} import {name[-1]}"
        files[path] = block
        files[registry] = f"{(PACKAGE / registry).read_text('utf-8')}\n{imported}\n\n{line}\n"
    link(PACKAGE, folder / "xlmr_ray", files)
    return folder


def link(source: Path, target: Path, files: Mapping[str, str]) -> None:
    """`source` in `target` by links, but for these files, by their paths in it."""
    target.mkdir(parents=True)
    below = {name.partition("/")[0] for name in files if "/" in name}
    for part in source.iterdir():
        if part.name not in below | files.keys():
            (target / part.name).symlink_to(part)
    for name in below:
        own = {path.partition("/")[2]: text for path, text in files.items() if path.startswith(f"{name}/")}
        link(source / name, target / name, own)
    for name, text in files.items():
        if "/" not in name:
            (target / name).write_text(text, "utf-8")
