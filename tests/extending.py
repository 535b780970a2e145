"""The examples of docs/extending.md, and the package with some of them in it."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
PACKAGE = PAGE.parents[1] / "xlmr_ray"
SECTIONS = {
    section.split("\n", 1)[0]: re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for section in PAGE.read_text("utf-8").split("\n## ")[1:]
}


def package_with(folder: Path, section: str, registry: str, line: str) -> Path:
    """A folder for PYTHONPATH: the package with the file of a section's example, and one line more in a registry. All
    else is the package's own, by links.
    """
    example = SECTIONS[section][0]
    path = example.split("\n", 1)[0].removeprefix("# xlmr_ray/")
    class_name = re.findall(r"^class (\w+)", example, re.MULTILINE)[-1]
    imported = f"from xlmr_ray.{path.removesuffix('.py').replace('/', '.')} import {class_name}"
    files = {path: example, registry: f"{(PACKAGE / registry).read_text('utf-8')}\n{imported}\n\n{line}\n"}
    link(PACKAGE, folder / "xlmr_ray", files)
    return folder


def link(source: Path, target: Path, files: dict[str, str]) -> None:
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
