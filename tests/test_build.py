"""What a build of the package holds: compiled kernels where there is a compiler, and all else without."""

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from xlmr_ray.model.kernels.library import ARGUMENTS, LIBRARY, library

ROOT = Path(__file__).parent.parent
NAME = "xlmr_ray/model/kernels/libkernels.so"


HERE = shutil.which("g++") is not None and sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.skipif(not HERE, reason="no g++ for x86-64")
def test_they_are_compiled_where_there_is_a_compiler():
    """Of the checkout that is tested: `make test` installs it, and so compiles them."""
    assert LIBRARY.is_file()
    assert (library() is not None) is torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@pytest.mark.skipif(library() is None, reason="no kernels for this CPU")
def test_every_function_has_its_arguments():
    command = ["nm", "--dynamic", "--defined-only", LIBRARY]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in names if name.endswith(("float32", "bfloat16"))} == set(ARGUMENTS)


@pytest.mark.parametrize("compiler", ["g++", "false"])
def test_a_wheel(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if compiler == "g++" and not HERE:
        pytest.skip("no g++ for x86-64")
    monkeypatch.setenv("CXX", compiler)
    source = tmp_path / "source"
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("assets", "__pycache__", "*.so")
    shutil.copytree(ROOT / "xlmr_ray", source / "xlmr_ray", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "out", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no index of packages")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl" if compiler == "g++" else "-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert (NAME in names) is (compiler == "g++")
    assert "xlmr_ray/model/kernels/attention.cpp" in names
