"""The house: who imports whom, how large a file is, and that docs/architecture.md names every file."""

import ast
import io
import re
import tokenize
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from xlmr_ray.tasks.registry import TASKS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "xlmr_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
# Each part may import those before it and its own.
ORDER = [
    {"errors"},
    {"foreign", "report_page", "stand_in", "text", "workers_path"},
    {"ray_start", "streams", "validation"},
    {"checkpoint: where it is"},
    {"config"},
    {"tokenizer"},
    {"model"},
    {"checkpoint"},
    {"modeling"},
    {"tasks"},
    {"engine"},
    {"train"},
    {"batch: stores"},
    {"batch", "serve"},  # neither imports the other
    {"demo"},
    {"bench"},
    {"cli"},
]
# Files that find a checkpoint and know its files, but neither configuration nor tokenizer, which look there for theirs.
FINDING = {
    f"xlmr_ray.checkpoint.{name}"
    for name in (
        *("adapter", "adapter_files", "cache", "config_values", "digest", "fetch"),
        *("files", "folder", "names", "push", "tensors"),
    )
}
# The stores that jobs and the service's batches are kept in know of neither.
STORES = "xlmr_ray.batch.store"
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
# Imported in one file each, with everything below them.
ONCE = {
    "bitsandbytes",
    "flash_attn",
    "flash_attn_interface",
    "s3fs",
    "openlineage",
    "kernels",
    "peft",
    "datasketch",
    "deltalake",
    "pyiceberg",
    "fastwarc",
    "resiliparse",
}
# Names that several files have on purpose, since whoever calls them calls each file's in the same way.
SHARED = {
    "router": "the application takes the routes of each protocol, and of the page, from a function of this name",
    "errors": "the application asks each protocol whether an error on a path is its own to shape",
    "error_body": "what `errors` of a protocol gives: an error in the shape that its clients read",
}
FOLDERS = {"pyiceberg": "iceberg"}  # or in a folder of files
# Oracles of the tests: never in the package.
NEVER = {"transformers", "sentence_transformers", "onnxruntime", "sentencepiece", "tests"}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path) for path in FILES}


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports, wherever in it: those of the package by file, others by their first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    known = set()
    for name in found:
        while name.startswith("xlmr_ray") and name not in NAMES:
            name = name.rpartition(".")[0]
        known.add(name if name.startswith("xlmr_ray") else name.partition(".")[0])
    return frozenset(known)


def part(name: str) -> str:
    if name in FINDING:
        return "checkpoint: where it is"
    if name.startswith(STORES):
        return "batch: stores"
    return name.split(".")[1] if "." in name else ""


def test_imports_go_one_way() -> None:
    wrong: list[str] = []
    for path in FILES:
        own = part(dotted(path))
        if own in ("", "__main__"):
            continue  # the package's own face, which takes from everywhere
        for name in imports(path):
            other = part(name)
            if name.startswith("xlmr_ray") and other != own and LEVEL.get(other, 99) >= LEVEL[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_circles() -> None:
    edges = {
        dotted(path): {name for name in imports(path) if name.startswith("xlmr_ray.")}
        for path in FILES
        if path.parent != PACKAGE or path.name != "__init__.py"
    }
    TopologicalSorter(edges).prepare()  # raises CycleError, which names a circle


@pytest.mark.parametrize("package", sorted(ONCE))
def test_a_package_of_its_own_file(package: str) -> None:
    found = [path for path in FILES if package in imports(path)]
    assert len(found) <= 1 or {path.parent.name for path in found} == {FOLDERS.get(package)}


def test_no_oracle_and_no_ray_where_none_belongs() -> None:
    for path in FILES:
        assert not imports(path) & NEVER, path
        if LEVEL.get(part(dotted(path)), 99) < LEVEL["batch"]:
            assert "ray" not in imports(path), path


def test_serve_knows_no_task_by_its_class() -> None:
    """What serving needs to know of a task is an attribute or a method of the task."""
    classes = {task.__name__ for task in TASKS.values()}
    for path in FILES:
        if part(dotted(path)) == "serve":
            nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
            named = {
                name.name for node in nodes if str(node.module).startswith("xlmr_ray.tasks") for name in node.names
            }
            assert not named & classes, f"{path} imports {named & classes}"


def test_a_name_stands_for_one_idea() -> None:
    """A class or function at the top level of two files is one idea twice, or two ideas of one name. A command of
    `cli.py` may be called as the function that it runs.
    """
    files: dict[str, list[Path]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                files.setdefault(node.name, []).append(path)
    cli = PACKAGE / "cli.py"
    commands = set(re.findall(r"@app\.command\(\)\ndef (\w+)", cli.read_text("utf-8")))
    twice = {
        name: " and ".join(str(path.relative_to(ROOT)) for path in where)
        for name, where in files.items()
        if len(where) > 1 and name not in SHARED and not (name in commands and len(where) == 2 and cli in where)
    }
    said = "; ".join(f"{name} is in {where}" for name, where in twice.items())
    assert not twice, f"{said}: rename one so that it says what it is, or make them one; an interface goes into SHARED"
    assert all(len(files[name]) > 1 for name in SHARED)


def lines_of_code(path: Path) -> int:
    """Lines that hold a token which is neither comment nor docstring."""
    text = path.read_text("utf-8")
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - docstrings)


def test_no_file_is_too_long() -> None:
    assert {str(path.relative_to(ROOT)): lines for path in FILES if (lines := lines_of_code(path)) > 400} == {}


def test_few_files_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_the_architecture_names_every_file_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (block,) = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    named: set[str] = set()
    folder = ""
    for line in block.splitlines():
        words = line.split()
        if not line.startswith(" "):
            folder = words.pop(0).removeprefix("xlmr_ray/")
        named |= {f"{folder}{word}.py" for word in words}
    there = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.name != "__init__.py" or list(path.parent.glob("*.py")) == [path]
    }
    rooms = [path for path in FILES if path.name == "__init__.py" and nothing_but_rooms(path)]
    there -= {str(path.relative_to(PACKAGE)) for path in rooms}
    assert (sorted(there - named), sorted(named - there)) == ([], [])
    for name in re.findall(r"`((?!tests/)[a-z_/]+\.py)`", text):
        assert list(PACKAGE.rglob(name)), name
    for name in re.findall(r"`(tests/[\w/.]+|[a-z_]+/(?:[a-z_]+/)*)`", text):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name


def nothing_but_rooms(path: Path) -> bool:
    """Whether a folder has only folders in it."""
    return path.parent != PACKAGE and lines_of_code(path) == 0 and any(one.is_dir() for one in path.parent.iterdir())
